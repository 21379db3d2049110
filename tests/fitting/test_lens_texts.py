"""The texts that the findings' lenses were fitted on: whose they are, in which order, and in which words."""

import json

from analyses import lens_texts
from tests.conftest import tiny


def test_two_of_one_and_one_of_the_other_without_what_findings_use(tmp_path):
    gsm8k, math500 = tmp_path / "gsm8k.jsonl", tmp_path / "math500.jsonl"
    rows = [{"question": f"q{n}", "answer": f"It is <<1+{n}=9>>{n}.\n#### {n}"} for n in range(68)]
    gsm8k.write_text("".join(json.dumps(row) + "\n" for row in rows))
    math500.write_text("".join(json.dumps({"problem": f"p{n}", "solution": f"s{n}"}) + "\n" for n in range(4)))
    texts = list(lens_texts.mixed(gsm8k, math500))
    assert [name for name, *_ in texts] == [
        *("gsm8k-64", "gsm8k-65", "math-0", "gsm8k-66", "gsm8k-67", "math-1", "math-2", "math-3")
    ]
    assert texts[0][1:] == ("q64", "It is 64.\nThe answer is 64")
    assert lens_texts.text_of(tiny("llama").tokenizer, "q", "a") == "q\na"


def test_a_chat_template_is_used_where_there_is_one(smollm2):
    text = lens_texts.text_of(smollm2.tokenizer, "How many?", "Two.")
    assert "<|im_start|>user\nHow many?<|im_end|>" in text
    assert text.endswith("<|im_start|>assistant\nTwo.<|im_end|>\n")
