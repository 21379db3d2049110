"""Thinking is told from the answer, whoever opened it, and whether or not it was closed."""

import pytest

pytest.importorskip("inspect_ai", reason="needs the extra eval")

from layerlens.evaluation.inspect.thinking import parted


@pytest.mark.parametrize(
    ("prompt", "text", "thinking", "answer"),
    [
        ("Q", "42", None, "42"),
        ("Q", " 42\n", None, " 42\n"),
        ("Q", "<think>\n6 * 7\n</think>\n\n42", "6 * 7", "42"),
        ("Q<think>\n", "6 * 7\n</think>\n\n42", "6 * 7", "42"),
        ("Q<think>\n", "6 * 7 is 42, and then", "6 * 7 is 42, and then", ""),
        ("Q", "<think>6 * 7", "6 * 7", ""),
        ("Q", "6 * 7</think>42", "6 * 7", "42"),
        ("Q<think>\n\n</think>\n\n", "42", None, "42"),
        ("Q", "<think></think>42", "", "42"),
        ("Q", "<think>a</think>41<think>b</think>42", "a</think>41b", "42"),
        ("Q", "what does <think> mean?", None, "what does <think> mean?"),
    ],
)
def test_thinking_and_answer(prompt, text, thinking, answer):
    assert parted(prompt, text) == (thinking, answer)
