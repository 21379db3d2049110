"""Write the texts that the lenses of docs/lenses.md were fitted on: problems with their answers, as a model sees them.

python analyses/lens_texts.py MODEL GSM8K MATH500 OUT.jsonl

GSM8K and MATH500 are the test files of the two datasets (.jsonl). Two problems of GSM8K are followed by one of
MATH-500. GSM8K is used from the 65th problem on, because the findings are about the first 64. For models with a chat
template, question and answer are written in it; for others, on two lines.
"""

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import layerlens as ll

LEFT_FOR_FINDINGS = 64
Answered = tuple[str, str, str]  # id, question, answer

parser = argparse.ArgumentParser(description="Write problems with their answers, to fit lenses on.")
parser.add_argument("model", help="hub id, folder, .gguf file, or a built-in name; its chat template is used")
parser.add_argument("gsm8k", type=Path, help="GSM8K's test.jsonl")
parser.add_argument("math500", type=Path, help="MATH-500's test.jsonl")
parser.add_argument("out", type=Path, help="the .jsonl to write")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the file; prints how many texts it has."""
    options = parser.parse_args(arguments)
    try:
        tokenizer = ll.load(options.model).tokenizer
        texts = [
            {"id": name, "prompt": text_of(tokenizer, *pair)} for name, *pair in mixed(options.gsm8k, options.math500)
        ]
        options.out.write_text("".join(f"{json.dumps(text)}\n" for text in texts), encoding="utf-8")
    except (ll.LayerlensError, OSError) as error:
        parser.error(str(error))
    print(f"{len(texts):,} texts in {options.out}")


def mixed(gsm8k: Path, math500: Path) -> Iterator[Answered]:
    """Problems with their answers: two of the first file, one of the second, until both are used up."""
    first, second = _of_gsm8k(gsm8k), _of_math500(math500)
    while some := [*islice(first, 2), *islice(second, 1)]:
        yield from some


def text_of(tokenizer: Any, question: str, answer: str) -> str:
    """Question and answer in the chat template, or on two lines where there is none."""
    if not tokenizer.chat_template:
        return f"{question}\n{answer}"
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False))


def _of_gsm8k(path: Path) -> Iterator[Answered]:
    """With the answer in words, and without the calculator's notes."""
    for place, row in enumerate(_rows(path)):
        if place >= LEFT_FOR_FINDINGS:
            answer = re.sub(r"<<.*?>>", "", row["answer"]).replace("#### ", "The answer is ")
            yield f"gsm8k-{place}", row["question"], answer


def _of_math500(path: Path) -> Iterator[Answered]:
    for place, row in enumerate(_rows(path)):
        yield f"math-{place}", row["problem"], row["solution"]


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


if __name__ == "__main__":
    main()
