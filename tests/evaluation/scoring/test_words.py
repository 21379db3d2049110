"""`last_number` and `number_or_words` on whole texts: hand-made cases, and the solutions of real datasets."""

import json
import time

import pytest

import layerlens.datasets as ld
from layerlens.evaluation.scoring import last_number, number_or_words
from tests.conftest import REAL_DATA
from tests.thorough import combined


def rows(name):
    if not (REAL_DATA / name).is_file():
        pytest.skip(f"the real data is not here: no {name} in a folder shared/datasets beside the checkout")
    return [json.loads(line) for line in (REAL_DATA / name).read_bytes().splitlines()]


def test_every_solution_of_gsm8k_is_right_for_its_own_reference_alone():
    solutions = [row["answer"] for row in rows("gsm8k/test.jsonl")]
    references = [solution.split("####")[1].strip().replace(",", "") for solution in solutions]
    assert len(solutions) == 1319
    for place, solution in enumerate(solutions):
        assert last_number(solution, references[place]), solution
        other = references[place - 1]
        assert last_number(solution, other) == (int(references[place]) == int(other)), solution


@pytest.mark.parametrize(
    ("text", "reference", "right"),
    [
        ("it is 12", "12", True),
        ("it is 12 or 13", "12", False),
        ("First.\nPlants take carbon dioxide.", "carbon dioxide", True),
        ("Plants take Carbon Dioxide.\nThey like it.", "carbon dioxide", False),
        ("No. If it rained, the street would be wet, yes.", "no", True),
        ("Yes. There is no doubt.", "no", False),
        ("Nobody knows.", "no", False),
        ("It ends at 22:05.", "22:05", True),
        ("It ends at 122:05.", "22:05", False),
        ("The label is **MIXED**", "MIXED", True),
        ("the answer is: Sam\nTom is tall", "Sam", True),
        ("", "Sam", False),
        ("It is not Paris.", "Paris", False),
        ("It isn't the city of **Paris**.", "Paris", False),
        ("It isn’t Paris.", "Paris", False),
        ("It is Rome rather than Paris.", "Paris", False),
        ("It is Rome instead of Paris.", "Paris", False),
        ("Unlike Paris, Rome is.", "Paris", False),
        ("It is neither Paris nor Rome.", "Paris", False),
        ("It is neither Rome nor Paris.", "Paris", False),
        ("I never said that it is Paris.", "Paris", False),
        ("It can be anything but Paris.", "Paris", False),
        ("All of them except for Paris.", "Paris", False),
        ("It is other than Paris.", "Paris", False),
        ("Everything but Paris.", "Paris", False),
        ("It cannot be Paris.", "Paris", False),
        ("It is not Rome because Paris is.", "Paris", True),
        ("It is not Rome, only Paris.", "Paris", True),
        ("It is not just Paris.", "Paris", True),
        ("Paris seems wrong.", "Paris", False),
        ("Paris clearly fails.", "Paris", False),
        ("Paris also fails.", "Paris", False),
        ("Paris is ruled out.", "Paris", False),
        ("Paris is incorrect.", "Paris", False),
        ("Paris is false.", "Paris", False),
        ("Paris can not be.", "Paris", False),
        ("Paris would be wrong.", "Paris", False),
        ("Paris are not.", "Paris", False),
        ("Paris is not just big.", "Paris", True),
        ("It is not one of the very big Paris suburbs.", "Paris", True),
        ("It is not one of the big Paris suburbs.", "Paris", False),
        ("Paris is wrong.", "Paris", False),
        ("Paris is not the right city.", "Paris", False),
        ("It is Paris or Rome.", "Paris", False),
        ("It is Rome or Paris.", "Paris", False),
        ("Is it Rome or Paris? Paris.", "Paris", True),
        ("It is not Rome but Paris.", "Paris", True),
        ("It is not Rome, it is Paris.", "Paris", True),
        ("It is Paris, not Rome.", "Paris", True),
        ("It is not only Paris.", "Paris", True),
        ("No, Paris.", "Paris", True),
        ("It is neither.", "neither", True),
        ("There is no doubt that it follows: yes.", "no", False),
        ("There is no doubt that it follows: yes.", "yes", True),
        ("No one knows.", "no", False),
        ("No, it does not follow.", "no", True),
        ("Not yes.", "yes", False),
        ("Not yes.", "no", False),
        ("I say no, not yes.", "no", True),
        ("I wouldn't say yes.", "yes", False),
        ("Yes, it does not follow.", "yes", True),
        ("It does not follow - no.", "no", True),
        ("Does it follow that no cat barks? Yes.", "yes", True),
        ("Does it follow that no cat barks? Yes.", "no", False),
        ("Yes or no? No.", "no", True),
        ("Is it Paris? No, Rome.", "Paris", False),
        ("Is it Paris? No, Rome.", "Rome", True),
        ("Is it Paris or Rome? Rome.", "Rome", True),
        ("It is Paris, isn't it?", "Paris", False),
        ("Paris isn't the capital of Germany. Berlin", "Paris", False),
        ("Paris isn't the capital of Germany. Berlin", "Berlin", True),
        ("Paris does not fit: Lyon.", "Paris", False),
        ("Paris never was: Lyon.", "Paris", False),
        ("Paris is not wrong.", "Paris", True),
        ("Paris, which is not in Spain.", "Paris", True),
        ("It is Bogot\u00e1.", "Bogota\u0301", True),
        ("It is Bogota\u0301.", "Bogot\u00e1", True),
        ("It is Bogota\u0301.", "bogota", False),
        ("It is x\u0302.", "x", False),
        ("It is STRASSE.", "Straße", True),
        ("It is New  York.", "New York", True),
        ("It is New\u00a0York.", "New \t York", True),
        ("It is x2.", "x²", False),
        ("It is x².", "x2", False),
        (r"It is 2\cdot 10^3.", "2000", True),
        ("It is 2000.", r"2 \times 10^{3}", True),
        ("It is 3½.", "3.5", True),
        ("It is 3.5.", "3½", True),
        ("I doubt it is Paris.", "Paris", False),
        ("We seriously doubt that it is Paris.", "Paris", False),
        ("There is no doubt it is Paris.", "Paris", True),
        ("I do not doubt it is Paris.", "Paris", True),
        ("It is no longer Paris.", "Paris", False),
        ("Paris no longer is.", "Paris", False),
        ("The answer is not, as many think, Paris.", "Paris", False),
        ("It isn't, however, Paris.", "Paris", False),
        ("No, as I said, Paris.", "Paris", True),
        ("Rome is not, Lyon is not, Paris is.", "Paris", True),
        ("Le résultat n'est pas Paris.", "Paris", False),
        ("Paris n’est pas.", "Paris", False),
        ("Ce n'est pas Rome mais Paris.", "Paris", True),
        ("Ce n'est pas seulement Paris.", "Paris", True),
        ("Paris. No, wait: Rome", "Paris", False),
        ("Paris. No, wait: Rome", "Rome", True),
        ("Paris, sorry, I meant New York.", "Paris", False),
        ("The answer is Paris.\nNo, wait: it is Rome.", "Paris", False),
        ("The answer is Paris.\nNo, wait: it is Rome.", "Rome", True),
        ("The answer is Paris\nMake that Rome.", "Rome", True),
        ("A knight. Correction: the knave.", "knight", False),
        ("Paris. Wait, let me check.", "Paris", True),
        ("Paris. Actually, Rome is not far.", "Paris", True),
        ("The answer is:\nNo, Tom.", "no", True),
        ("It is 12, not 13.", "12", True),
        ("It is 13, not 12.", "12", False),
        ("Paris it is, Paris.", "Paris", True),
        ("No: yes would be too much.", "no", True),
        ("No: yes would be too much.", "yes", False),
        ("Not Paris. Paris.", "Paris", True),
        ("Paris is wrong, Paris is wrong.", "Paris", False),
    ],
)
def test_a_number_or_words(text, reference, right):
    assert number_or_words(text, reference) == right


def test_the_shipped_problems_tell_their_answers_apart():
    answers = [prompt.reference for prompt in ld.dataset("sample")]
    for answer in answers:
        rightly = {other for other in answers if number_or_words(f"We think.\nSo it is {answer}.", other)}
        assert rightly == {answer}


LOOPS = ["1", "1,", "1 ", "1/", r"\boxed{", "}", r"\frac{1", "answer is ", "answer:\n", "A ", "-$", "\\", "{", " "]
LOOPS += [
    "A? ",
    "D is not ",
    "½",
    "10^",
    "2*10^3*",
    "1e",
    "yes ",
    "a_",
    "f(",
    "111 ",
    "1 000 ",
    "\\log ",
    "2**",
    "{1}",
    "wait, ",
    "I pick ",
    "not, a, ",
    "B over ",
]


@pytest.mark.parametrize(("piece", "score"), combined(LOOPS, [last_number, number_or_words], n=10))
def test_a_model_that_repeats_itself_is_scored_at_once(score, piece):
    started = time.process_time()
    score(piece * 30_000, "A")
    score(piece * 30_000, "12")
    assert time.process_time() - started < 5
