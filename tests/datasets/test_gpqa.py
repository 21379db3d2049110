"""GPQA on made-up rows in the schema of the hub: its questions must not be repeated in plain text."""

import csv
import json
import math
import random
import re
import subprocess
import sys
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

import layerlens.datasets as ld
from layerlens.datasets.gpqa import SOURCE, option_order, to_prompt


def row(n: int) -> dict[str, str]:
    return {
        "Pre-Revision Question": f"an older question {n}",
        "Question": f"Which of these is made-up thing {n}?\n",
        "Correct Answer": f"right {n}\n",
        "Incorrect Answer 1": f" wrong {n} a",
        "Incorrect Answer 2": f"wrong {n} b",
        "Incorrect Answer 3": f"wrong {n} c",
        "Explanation": "made up,\nover two lines",
        "Subdomain": "none",
        "Record ID": f"rec{n:05d}",
    }


def written(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def options(content: str) -> dict[str, str]:
    return dict(re.findall(r"^\(([A-Z])\) (.*)$", content, flags=re.MULTILINE))


def test_the_prompt_asks_shows_four_options_and_says_how_to_end():
    prompt = to_prompt(row(3), 0, seed=0)
    assert prompt.prompt_id == "rec00003"
    lines = prompt.content.split("\n")
    assert lines[0] == "Which of these is made-up thing 3?"
    assert [line[:4] for line in lines[2:6]] == ["(A) ", "(B) ", "(C) ", "(D) "]
    assert set(options(prompt.content).values()) == {"right 3", "wrong 3 a", "wrong 3 b", "wrong 3 c"}
    assert 'says "Answer: "' in lines[-1]


@given(st.integers(0, 10**6), st.integers(-(2**70), 2**70))
def test_the_reference_is_the_letter_of_the_correct_answer(n, seed):
    prompt = to_prompt(row(n), 0, seed)
    assert options(prompt.content)[prompt.reference] == f"right {n}"


@given(st.permutations(range(12)), st.integers(1, 12), st.integers(0, 5))
def test_the_order_of_options_depends_on_seed_and_record_alone(tmp_path_factory, order, limit, seed):
    path = written(tmp_path_factory.mktemp("gpqa") / "copy.csv", [row(n) for n in order])
    random.seed(str(order))
    read = ld.dataset("gpqa", data_file=path, limit=limit, seed=seed)
    assert read.prompts == tuple(to_prompt(row(n), 0, seed) for n in order[:limit])


def test_the_order_is_the_same_in_another_process_and_leaves_the_global_generator_alone():
    random.seed(1)
    before = random.getstate()
    here = [option_order(f"rec{n}", 7) for n in range(50)]
    assert random.getstate() == before
    program = "from layerlens.datasets.gpqa import option_order as f; print([f(f'rec{n}', 7) for n in range(50)])"
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == str(here)


def test_the_order_stays_what_it_was_in_earlier_versions():
    # By sha256sum of "0:rec1" and so on, modulo 24, written in the factorial number system.
    assert option_order("rec1", 0) == (1, 2, 3, 0)
    assert option_order("rec1", 1) == (1, 3, 2, 0)
    assert option_order("rec2", 1) == (2, 3, 1, 0)


def test_letters_and_orders_are_uniform_over_records():
    drawn = Counter(option_order(f"rec{n}", 0) for n in range(24_000))
    letters = Counter()
    for order, count in drawn.items():
        letters[order.index(0)] += count
    assert len(drawn) == math.factorial(4)
    for counts, expected in [(drawn, 1000), (letters, 6000)]:  # five standard deviations of a binomial count
        assert all(abs(count - expected) < 5 * math.sqrt(expected) for count in counts.values()), counts


def test_seeds_differ():
    same = sum(option_order(f"rec{n}", 0) == option_order(f"rec{n}", 1) for n in range(2400))
    assert 50 < same < 150, "about one in 24"


def test_a_local_copy_in_csv(tmp_path):
    dataset = ld.dataset("gpqa", data_file=written(tmp_path / "copy.csv", [row(n) for n in range(5)]))
    assert [prompt.prompt_id for prompt in dataset] == [f"rec{n:05d}" for n in range(5)]
    assert (dataset.name, dataset.config, dataset.split) == ("gpqa", "gpqa_diamond", "train")


def test_every_missing_column_is_named(tmp_path, refused):
    path = tmp_path / "copy.json"
    kept = {column: text for column, text in row(1).items() if column not in ("Record ID", "Incorrect Answer 2")}
    path.write_text(json.dumps([row(0), kept]))
    with refused(f"{path}, row 2", "'Record ID', 'Incorrect Answer 2'", "'Question'", SOURCE.card.hub_id):
        ld.dataset("gpqa", data_file=path)
