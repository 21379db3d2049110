"""Values that a newcomer gives from Python in place of those that are meant: accepted, or answered with what to do."""

import json

import pandas as pd
import pytest

import layerlens as ll
from tests.conftest import tiny
from tests.made_up_run import planted, write_run
from tests.needs_inspect import needs_inspect
from tests.refusals import refused

CURVES = {"perturbed": [3, 2, 1, 2], "unperturbed": [3, 2, 2, 1]}


@pytest.fixture
def runs(tmp_path):
    return [write_run(tmp_path / name, planted(CURVES, n_tokens=12, noise=0.1)) for name in ("a", "b")]


def test_the_path_of_a_run_stands_for_the_run(runs, tmp_path):
    run, other = runs
    for path in (other.path, str(other.path)):
        pd.testing.assert_frame_equal(run.compare(path), run.compare(other))
        pd.testing.assert_frame_equal(run.compare_outputs(path), run.compare_outputs(other))
        assert run.show(beside=path)._repr_html_() == run.show(beside=other)._repr_html_()
    pages = [run.report(tmp_path / name, beside=one) for name, one in (("1.html", other), ("2.html", str(other.path)))]
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_what_is_no_run_is_refused(runs, tmp_path):
    run, _ = runs
    for call in (run.compare, run.compare_outputs):
        with refused(ll.OptionError, "other", 3):
            call(3)
        with refused(ll.RunError, given=tmp_path / "nix"):
            call(tmp_path / "nix")
    for call in (run.show, run.report):
        with refused(ll.OptionError, "beside", 3):
            call(beside=3)
    with refused(ll.OptionError, "column", ["entropy"]):
        run.layers(["entropy"])


def test_arms_in_one_text_are_given_back_as_a_list(tmp_path):
    with refused(ll.OptionError, "arms", "last, valley", advice="arms=['last', 'valley']"):
        ll.ablate(tiny("llama"), ["sample"], out=tmp_path / "out", arms="last, valley")


def test_the_name_of_a_model_is_loaded_first(tmp_path):
    with refused(ll.OptionError, "model", "smollm2-135m-instruct", advice="ll.load('smollm2-135m-instruct')"):
        ll.trace("smollm2-135m-instruct", ["a"], out=tmp_path / "out")


def test_a_dict_among_prompts_is_one_message(tmp_path):
    with refused(ll.PromptError, given={"prompt": "x"}, problem='"prompt"', advice="{'role': 'user', 'content'"):
        ll.trace(tiny("llama"), [{"prompt": "x"}], out=tmp_path / "out")


@pytest.mark.parametrize(
    ("row", "there", "advice"),
    [
        ({"promt": "x"}, '"promt"', "did you mean prompt"),
        ({"id": "1", "mesages": []}, '"id", "mesages"', "did you mean messages"),
        ({"question": "x"}, '"question"', 'under "prompt"'),
        ({}, "no key", 'under "prompt"'),
        (dict.fromkeys("abcdefgh", "x"), '"a", "b", "c", "d" and others', 'under "prompt"'),
    ],
)
def test_the_keys_of_a_line_are_named(tmp_path, row, there, advice):
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(row))
    with refused(ll.PromptError, given=row, problem=there, advice=advice):
        ll.read_prompts(path)


def test_a_misspelt_prompt_id_is_answered_with_the_right_one(tmp_path):
    prompts = {f"sample-{name}": one for name, one in zip(["one", "two"], planted(CURVES).values(), strict=False)}
    run = write_run(tmp_path / "run", prompts)
    with refused(ll.OptionError, "prompt_id", "sample-on", advice="did you mean sample-one"):
        ll.plot.lens_grid(run, "sample-on")
    with refused(ll.RunError, "prompt_id", "sample-on", advice="did you mean sample-one"):
        ll.plot.figure_grid(run, run, prompt_id="sample-on")


@needs_inspect
def test_the_place_of_a_run_is_answered_with_a_new_directory_for_answers(runs):
    run, _ = runs
    with refused(ll.RunError, "out", run.path, advice="give a new directory"):
        ll.ablate(tiny("llama"), ["sample"], limit=1, out=run.path, arms=["last"], max_new_tokens=1)
    assert not (run.path / "logs").exists()


def test_a_place_that_is_taken_by_something_else_is_answered_with_a_new_directory(tmp_path, cli):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "manifest.json").write_text("{}")
    with refused(ll.RunError, "out", tmp_path / "foreign", advice="give a new directory"):
        ll.trace(tiny("llama"), ["a"], out=tmp_path / "foreign", max_new_tokens=1)
    code, _, err = cli("export", tmp_path, "--out", tmp_path / "z.csv")
    assert code == 2
    assert "is not a run" in err
    assert "--out" not in err


def test_a_report_of_a_damaged_run_names_the_command_that_can_resume(runs, cli):
    run, _ = runs
    part = next((run.path / "tokens").iterdir())
    part.write_bytes(b"damaged")
    code, _, err = cli("report", run.path)
    assert code == 2
    assert f"{part}" in err
    assert "command that wrote it with --resume" in err
