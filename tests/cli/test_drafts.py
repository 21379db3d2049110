"""`--draft`: the same text and the same run as without, and one sentence for what cannot be."""

import json
import re

import pytest

import layerlens as ll
from layerlens.models import tiny_model, tiny_tokenizer

PROMPT = "What is it?"
ASKED = ["--prompt", PROMPT, "--device", "cpu", "--max-new-tokens", 24]
EAGER = ["--draft-option", "length=4", "--draft-option", "threshold=0", "--draft-option", "patience=null"]


@pytest.fixture
def folder(tiny_folder):
    return tiny_folder("llama")


@pytest.fixture
def generate(cli, folder):
    return lambda *arguments: cli("generate", "--model", folder, *ASKED, *arguments)


@pytest.fixture
def refused(generate):
    """Nothing but one sentence is printed, and it names this."""

    def refuse(said, *arguments):
        code, out, err = generate(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), (out, err)
        assert said in err

    return refuse


def answer(out):
    """What was printed before the line about drafts, without how many layers were read, which drafts change."""
    return re.sub(r", [\d.]+ unembeddings a token", "", out)


def counted(out):
    """Accepted tokens, drafted tokens, rounds, and what is left out now."""
    found = re.search(r"\n([\d,]+) of ([\d,]+) drafted tokens accepted in ([\d,]+) rounds.*; now left out: (.+)\n", out)
    return [*map(int, found.groups()[:3]), found[4]]


DRAFTS = [
    ["every-other"],
    ["fixed", "--draft-option", "skipped=[1,2]", "--draft-option", "tree=true"],
    ["swift", "--draft-option", "context_window=3"],
    ["conflayers", "--draft-option", "readout=vocabulary", "--draft-option", "context_window=2"],
    ["clasp", "--draft-option", "search_interval=2"],
    ["knapspec", "--draft-option", "context_window=2"],
]


@pytest.mark.parametrize("strategy", [["last"], ["valley", "--window", 3], ["sled"]], ids=lambda words: words[0])
def test_the_text_is_that_without_drafts(generate, strategy):
    expected = generate("--strategy", *strategy)
    n_drafted = 0
    for draft in DRAFTS:
        code, out, err = generate("--strategy", *strategy, "--draft", *draft, *EAGER)
        assert (expected[0], code, expected[2], err) == (0, 0, "", ""), draft
        assert answer(out).startswith(answer(expected[1])), draft
        if draft[0] != "knapspec":  # which drafts where that promises to be faster
            accepted, drafted, n_rounds, _ = counted(out)
            assert 0 < n_rounds <= drafted <= 4 * 10 * n_rounds
            assert 0 <= accepted < drafted
            n_drafted += drafted
    assert n_drafted > 100


def test_the_line_about_drafts_counts_what_the_drafter_counted(generate, folder):
    code, out, _ = generate("--strategy", "last", "--draft", "fixed", "--draft-option", "skipped=[2]", *EAGER)
    assert code == 0
    model = ll.load(folder, device="cpu")
    drafter = ll.Drafter(model, ll.FixedSkip([2], length=4, threshold=0, patience=None))
    ll.generate(model, PROMPT, draft=drafter, max_new_tokens=24)
    drafted = drafter.rounds[drafter.rounds["set"] >= 0]
    accepted = int(drafted["accepted"].sum())
    assert accepted > 0, "a model on which some tokens are accepted"
    assert counted(out) == [accepted, int(drafted["drafted"].sum()), len(drafted), "2"]


def test_options_reach_the_policy(generate):
    """Drafts of one token, and drafts that end after a token of which the model is not sure, are short."""
    lengths = []
    for options in (("length=4", "threshold=0"), ("length=1", "threshold=0"), ("length=4", "threshold=1")):
        words = [word for option in ("skipped=[2]", *options) for word in ("--draft-option", option)]
        _, out, _ = generate("--draft", "fixed", *words)
        _, drafted, n_rounds, left_out = counted(out)
        lengths.append(drafted / n_rounds)
        assert left_out == "2"
    assert lengths[0] > 3
    assert lengths[1:] == [1, 1]


def test_beside_the_last_layer_the_texts_are_equal(generate):
    code, out, _ = generate("--strategy", "last", "--compare", "--draft", "every-other", *EAGER)
    assert code == 0
    assert "\nthe texts are equal\n" in out
    assert counted(out)[3] == "1"


def test_a_short_text_has_no_drafts(generate):
    """The first rounds are decoded plainly, to compare with."""
    code, out, _ = generate("--draft", "every-other", "--max-new-tokens", 3)
    assert code == 0
    assert out.endswith("nothing was drafted; now left out: 1\n")


@pytest.mark.parametrize("backend", ["nnsight", "transformer-lens"])
def test_drafts_with_the_weights_in_another_library(generate, backend):
    """They are the same text, or are refused."""
    pytest.importorskip(backend.replace("-", "_"))
    expected = generate("--backend", backend, "--strategy", "last")
    code, out, err = generate("--backend", backend, "--strategy", "last", "--draft", "every-other", *EAGER)
    assert expected[0] == 0
    if code == 2:
        assert (out, err.count("\n")) == ("", 1)
    else:
        assert (code, err) == (0, "")
        assert answer(out).startswith(answer(expected[1]))


# a saved set


def test_a_saved_set_is_taken_again(generate, folder, tmp_path):
    file = tmp_path / "skips.json"
    searched = ["--draft", "swift", "--draft-option", "context_window=3", *EAGER]
    code, out, _ = generate(*searched, "--save-skip-set", file)
    assert code == 0
    assert out.endswith(f"skip set written to {file}\n")
    found = json.loads(file.read_text())
    assert found["model"]["n_layers"] == 4
    assert len(found["attention"]) + len(found["mlp"]) == round(0.45 * 4)  # of two blocks between the first and last
    assert set(found["attention"] + found["mlp"]) <= {1, 2}
    assert found["found"]["policy"] == "swift"
    code, again, err = generate("--draft", "fixed", "--draft-option", f"skipped={file}", *EAGER)
    assert (code, err) == (0, "")
    assert counted(again)[3] == counted(out)[3]
    model = ll.load(folder, device="cpu")
    assert str(ll.SkipSet.load(file, model)) == counted(out)[3]


def test_a_set_of_another_model_is_refused(refused, cli, tiny_folder, tmp_path):
    """Of the same family and depth, but with other weights; and of another depth."""
    file = tmp_path / "skips.json"
    for name, changes in (("seed", {"seed": 3}), ("depth", {"num_hidden_layers": 6})):
        other = tmp_path / name
        tiny_model("llama", **changes).save_pretrained(other)
        tiny_tokenizer().save_pretrained(other)
        words = ["--draft", "every-other", "--save-skip-set", file, "--model", other]
        assert cli("generate", *ASKED, *words)[0] == 0
        refused(str(file), "--draft", "fixed", "--draft-option", f"skipped={file}")


# what cannot be


@pytest.mark.parametrize(
    ("said", "arguments"),
    [
        ("did you mean conflayers?", ["--draft", "conflayer"]),
        ("--draft x", ["--draft", "x"]),
        ("did you mean length?", ["--draft", "swift", "--draft-option", "lenght=3"]),
        ("--draft swift", ["--draft", "swift", "--draft-option", "skipped=[1]"]),
        ("--draft fixed", ["--draft", "fixed"]),
        ("--draft traced", ["--draft", "traced"]),
        ("--draft-option length=3", ["--draft-option", "length=3"]),
        ("--draft-option length", ["--draft", "swift", "--draft-option", "length"]),
        ("second time", ["--draft", "swift", "--draft-option", "length=3", "--draft-option", "length=4"]),
        ("--save-skip-set x.json", ["--save-skip-set", "x.json"]),
        ("--save-skip-set nowhere/x.json", ["--draft", "swift", "--save-skip-set", "nowhere/x.json"]),
        ("--save-skip-set x.txt", ["--draft", "swift", "--save-skip-set", "x.txt"]),
        ("block 0", ["--draft", "fixed", "--draft-option", "skipped=[0]"]),
        ("block 99", ["--draft", "fixed", "--draft-option", "skipped=[99]"]),
        ("block -1", ["--draft", "fixed", "--draft-option", "skipped=[-1]"]),
        ("skipped [1.5]", ["--draft", "fixed", "--draft-option", "skipped=[1.5]"]),
        ("skipped 'gone.json'", ["--draft", "fixed", "--draft-option", "skipped=gone.json"]),
        ("skipped {}", ["--draft", "fixed", "--draft-option", "skipped={}"]),
        ("length 0", ["--draft", "every-other", "--draft-option", "length=0"]),
        ("length 2.5", ["--draft", "every-other", "--draft-option", "length=2.5"]),
        ("threshold 2", ["--draft", "every-other", "--draft-option", "threshold=2"]),
        ("threshold 'high'", ["--draft", "every-other", "--draft-option", "threshold=high"]),
        ("tree 1", ["--draft", "every-other", "--draft-option", "tree=1"]),
        ("patience 0", ["--draft", "every-other", "--draft-option", "patience=0"]),
        ("did you mean vocabulary?", ["--draft", "conflayers", "--draft-option", "readout=vocab"]),
        ("nowhere", ["--draft", "traced", "--draft-option", "run=nowhere"]),
    ],
)
def test_what_cannot_be_is_one_sentence(refused, tmp_path, monkeypatch, said, arguments):
    monkeypatch.chdir(tmp_path)
    refused(said, *arguments)
    assert not list(tmp_path.iterdir())


def test_a_saved_set_replaces_no_part_of_a_run(refused, trace):
    run = trace("--draft", "every-other")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    file = run.path / "manifest.json"
    refused(f"--save-skip-set {file}", "--draft", "swift", "--save-skip-set", file)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("policy", ["every-other", "conflayers", "clasp", "knapspec", "swift"])
def test_a_model_that_takes_nothing_back_is_refused(cli, tiny_folder, policy):
    code, out, err = cli("generate", "--model", tiny_folder("mamba"), *ASKED, "--draft", policy)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "mamba" in err


def test_a_library_that_makes_no_drafts_is_refused(refused):
    pytest.importorskip("nnsight")
    refused("nnsight-simulated", "--backend", "nnsight-simulated", "--draft", "every-other")


# traces


@pytest.fixture
def begin(cli, folder, tmp_path):
    """Exit status, standard error and place of a trace."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Hello there, you\nWhat is this?\n")

    def run(*arguments, out="run"):
        words = ["--model", folder, "--prompts", prompts, "--device", "cpu", "--max-new-tokens", 12]
        code, _, err = cli("trace", *words, "--out", tmp_path / out, *arguments)
        return code, err, tmp_path / out

    return run


@pytest.fixture
def trace(begin):
    def run(*arguments, out="run"):
        code, err, path = begin(*arguments, out=out)
        assert code == 0, err
        return ll.open_run(path)

    return run


def test_a_run_says_by_which_policy_its_tokens_were_drafted(trace):
    options = ["--draft-option", "length=3", "--draft-option", "threshold=0", "--draft-option", "context_window=3"]
    run, plain = trace("--draft", "swift", *options), trace(out="plain")
    said = run.manifest["options"].pop("draft")
    expected = {"name": "swift", "length": 3, "threshold": 0, "tree": False, "patience": 100, "skip_ratio": 0.45}
    expected |= {"context_window": 3, "good_score": 0.95, "max_without_gain": 300, "max_proposals": 1000, "seed": 0}
    assert said == expected
    assert run.manifest["options"] == plain.manifest["options"]
    assert "draft" not in plain.manifest["options"]
    assert run.prompts["output"].tolist() == plain.prompts["output"].tolist()
    assert abs(run.layers("entropy") - plain.layers("entropy")).max() < 1e-5


def test_a_trace_saves_what_its_drafts_left_out_and_says_what_they_were_worth(begin, generate, folder, tmp_path):
    file = tmp_path / "skips.json"
    code, err, _ = begin("--draft", "swift", "--draft-option", "context_window=3", *EAGER, "--save-skip-set", file)
    assert (code, err.count("nothing was drafted")) == (0, 0), err
    assert json.loads(file.read_text())["found"]["policy"] == "swift"
    code, again, err = generate("--draft", "fixed", "--draft-option", f"skipped={file}", *EAGER)
    assert (code, err) == (0, "")
    assert counted(again)[3] == str(ll.SkipSet.load(file, ll.load(folder, device="cpu")))


def test_a_set_that_leaves_nothing_out_replaces_no_file(generate, tmp_path):
    """Before the search has found anything, or where the policy leaves nothing out."""
    file = tmp_path / "skips.json"
    file.write_text("what was there before")
    code, out, err = generate("--draft", "conflayers", "--save-skip-set", file)
    assert (code, file.read_text()) == (0, "what was there before")
    assert "nothing was drafted" in out
    assert str(file) in err


def test_values_in_the_spelling_of_python(generate):
    words = ["--draft", "every-other", "--draft-option", "tree=True", "--draft-option", "patience=None"]
    assert generate(*words)[0] == 0


def test_a_saved_set_in_a_trace(generate, trace, tmp_path):
    file = tmp_path / "skips.json"
    assert generate("--draft", "every-other", "--save-skip-set", file)[0] == 0
    run = trace("--draft", "fixed", "--draft-option", f"skipped={file}")
    assert run.manifest["options"]["draft"]["name"] == "fixed"
    assert run.manifest["options"]["draft"]["skipped"] == str(file)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ([], ["--draft", "swift"]),
        (["--draft", "swift"], []),
        (["--draft", "swift"], ["--draft", "every-other"]),
        (["--draft", "swift"], ["--draft", "swift", "--draft-option", "length=3"]),
    ],
)
def test_a_run_goes_on_only_with_the_drafts_that_it_was_begun_with(begin, before, now):
    assert begin(*before)[0] == 0
    path = begin(*before, "--resume")[2]
    content = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    code, err, path = begin(*now, "--resume")
    assert (code, err.count("\n")) == (2, 1)
    assert str(path) in err
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == content
    assert begin(*before, "--resume")[0] == 0


def test_what_a_run_was_begun_with_can_be_typed(begin):
    """The sentence that refuses to go on names the options as the command line takes them."""
    options = ["--draft", "every-other", "--draft-option", "length=3"]
    assert begin(*options)[0] == 0
    code, err, _ = begin("--resume")
    assert code == 2
    assert "--draft every-other" in err
    assert "--draft-option length=3" in err


@pytest.mark.parametrize(
    ("said", "arguments"),
    [
        ("--max-new-tokens 0", ["--draft", "swift", "--max-new-tokens", 0]),
        ("did you mean swift?", ["--draft", "swif"]),
        ("--draft-option length=3", ["--draft-option", "length=3"]),
        ("length 0", ["--draft", "swift", "--draft-option", "length=0"]),
        ("block 0", ["--draft", "fixed", "--draft-option", "skipped=[0]"]),
    ],
)
def test_what_cannot_be_traced_is_one_sentence_and_no_run(begin, said, arguments):
    code, err, path = begin(*arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert said in err
    assert not path.exists()


def test_a_model_that_takes_nothing_back_is_not_traced(begin, tiny_folder):
    code, err, path = begin("--model", tiny_folder("mamba"), "--draft", "every-other")
    assert (code, err.count("\n")) == (2, 1)
    assert "mamba" in err
    assert not path.exists()


def test_a_run_that_is_there_outlives_drafts_that_cannot_be_made(begin, tiny_folder):
    model = ["--model", tiny_folder("mamba")]
    code, err, path = begin(*model)
    assert code == 0, err
    assert begin(*model, "--draft", "every-other", "--overwrite")[0] == 2
    assert len(ll.open_run(path).prompts) == 2
