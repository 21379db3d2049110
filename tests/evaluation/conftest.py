"""Fixtures of the tests of evaluations."""

import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from layerlens.models.tiny import tiny_model, tiny_tokenizer

    place = tmp_path_factory.mktemp("llama")
    tiny_model("llama").save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    return place
