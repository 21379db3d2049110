"""`layerlens bench speculative` as a user sees it: one table, the same as JSON, csv and figures, one sentence for what
cannot be."""

import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import pandas as pd
import pytest

import layerlens as ll
import layerlens.cli
from layerlens.models import tiny_model, tiny_tokenizer
from tests.thorough import some

POLICIES = ["conflayers", "swift", "clasp", "knapspec", "every-other"]
QUICK = ["length=3", "threshold=0", "context_window=2", "search_interval=2", "skip_ratio=0.3"]
OPTIONS = [word for option in QUICK for word in ("--draft-option", option)]
FEW = ["--device", "cpu", "--limit", 3, "--max-new-tokens", 12]


def strictly(text):
    """JSON without NaN and infinities."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """What the command printed and wrote for a model of eight layers."""
    folder, out = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("found") / "drafts"
    tiny_model("llama", num_hidden_layers=8).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    arguments = ["bench", "speculative", "--model", folder, *FEW, *OPTIONS, "--blocks", "--out", out]
    printed, said = io.StringIO(), io.StringIO()
    with redirect_stdout(printed), redirect_stderr(said):
        code = layerlens.cli.run([str(word) for word in arguments])
    assert code == 0, said.getvalue()
    report = strictly((out / "report.json").read_text(encoding="utf-8"))
    return SimpleNamespace(folder=folder, out=out, printed=printed.getvalue(), said=said.getvalue(), report=report)


def lines_of(printed, names):
    """The cells of the lines of the table, by way."""
    lines = (line for line in printed.splitlines() if line.startswith(tuple(names)))
    return {way: cells for way, *cells in (re.split(r"\s{2,}", line.strip()) for line in lines)}


def numbers(cell):
    return [float(number) for number in re.findall(r"-?\d+\.?\d*", cell)]


def test_the_printed_table_is_that_of_the_report(done):
    rows = {row["way"].replace("_", " "): row for row in done.report["table"]}
    printed = lines_of(done.printed, rows)
    assert list(printed) == list(rows) == ["plain", *POLICIES, "generate", "assistant early exit"]
    for way, row in rows.items():
        speed, speed_up, *more = printed[way]
        assert numbers(speed) == [pytest.approx(row["tokens_per_second"], abs=0.0051)]
        ends = [row[f"speed_up{end}"] for end in ("", "_low", "_high")]
        assert numbers(speed_up) == pytest.approx(ends, abs=0.0051)
        if way not in POLICIES:
            assert not more
            assert "rounds" not in row
            continue
        after, accepted, acceptance, skipped, proposals, pays = more
        if row["prompts_after_search"]:
            ends = [row[f"speed_up_after_search{end}"] for end in ("", "_low", "_high")]
            assert numbers(after) == pytest.approx(ends, abs=0.0051)
        else:
            assert not numbers(after)
        if row["rounds"]:
            assert numbers(accepted) == [pytest.approx(row["accepted"], abs=0.0051)]
            assert numbers(acceptance) == [pytest.approx(row["acceptance"], abs=0.0051)]
        else:  # a policy that times the model may find no set that is worth a try
            assert (accepted, acceptance) == ("none drafted", "-")
        assert numbers(skipped) == [pytest.approx(100 * row["skipped_share"], abs=0.51)]
        assert numbers(proposals) == [row["proposals"]]
        assert numbers(pays) == ([] if row["break_even"] is None else [row["break_even"]])
        # numbers are numbers in the file, not words
        assert {name for name, value in row.items() if isinstance(value, str)} == {"way", "skipped"}
    assert {row["way"] for row in done.report["table"] if row.get("prompts_after_search") == 3} == {"every-other"}
    assert "…" not in done.printed  # nothing is cut off


def test_every_way_emits_the_tokens_of_plain_decoding(done):
    by_prompt = done.report["by_prompt"]
    assert list(by_prompt) == ["plain", *POLICIES, "generate", "assistant_early_exit"]
    for way in by_prompt.values():
        assert way["tokens"] == by_prompt["plain"]["tokens"]
        assert len(way["seconds"]) == 3
        assert all(seconds > 0 for seconds in way["seconds"])
    assert by_prompt["plain"]["tokens"] == [12, 12, 12]
    for difference in done.report["differences"]:
        assert abs(difference["margin"]) < 1e-4
    different = [row["different"] for row in done.report["table"]]
    assert sum(different) == len(done.report["differences"])
    assert f"differ from plain decoding: {sum(different)}\n" in done.printed or sum(different)


def test_policies_proposed_and_drafted_with_the_given_options(done):
    rows = {row["way"]: row for row in done.report["table"]}
    for name in POLICIES:
        given = done.report["policies"][name]
        assert (given["name"], given["length"], given["threshold"]) == (name, 3, 0)
        if name != "every-other":
            assert rows[name]["proposals"] > 0
            assert given["skip_ratio"] == 0.3
        assert rows[name]["rounds"] == sum(one["rounds"] for one in done.report["sets"][name])
        if name != "knapspec":
            assert rows[name]["rounds"] > 0
            assert 0 < rows[name]["drafted"] <= 3
    assert rows["every-other"]["skipped"] == "1, 3, 5"
    assert rows["every-other"]["skipped_share"] == pytest.approx(3 / 8)
    assert (done.report["prompts"], done.report["max_new_tokens"], done.report["early_exit"]) == (3, 12, 4)
    assert (done.report["n_layers"], done.report["family"], done.report["dtype"]) == (8, "llama", "float32")
    assert done.report["left_out"] == {}
    assert done.report["strategy"]["name"] == "last"
    assert done.said == ""


def test_blocks_and_their_correlations_are_printed_and_reported(done):
    blocks = pd.DataFrame(done.report["blocks"])
    assert blocks["block"].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert blocks["acceptance"].between(0, 1).all()
    correlations = done.report["rank_correlations"]
    lines = [line for line in done.printed.splitlines() if "rank correlation" in line]
    assert list(correlations) == ["one_minus_cosine", "norm_ratio"]
    for one, line in zip(correlations.values(), lines, strict=True):
        ends = [one[name] for name in ("rho", "low", "high")]
        assert (one["n_blocks"], one["n_prompts"]) == (7, 3)
        assert numbers(line.partition("correlation")[2]) == pytest.approx([*ends, 7, 3], abs=0.0051)


def test_the_files_are_those_that_are_named(done):
    named = re.findall(r"written to (.+)", done.printed)
    assert sorted(named) == sorted(str(path) for path in done.out.iterdir())
    stems = {"speed_up", "acceptance", "conflayers_confidence", "blocks"}
    tried = pd.DataFrame(done.report["sets"]["conflayers"]).dropna(subset=["lambda", "speed_up"])
    stems |= {"lambda"} if tried["lambda"].nunique() > 1 else set()
    assert "lambda" in stems, "options with which lambda moves"
    figures = {f"{stem}.{suffix}" for stem in stems for suffix in ("png", "pdf", "csv")}
    found = {f"skipset_{row['way']}.json" for row in done.report["table"] if row.get("skipped", "nothing") != "nothing"}
    assert found
    assert {path.name for path in done.out.iterdir()} == figures | found | {"report.json", "speculative.csv"}
    assert all(path.stat().st_size > 100 for path in done.out.iterdir())
    for name in ("speculative", "speed_up"):
        table = pd.read_csv(done.out / f"{name}.csv")
        assert table["way"].tolist() == [row["way"] for row in done.report["table"]]
        for column in ("speed_up", "accepted", "break_even"):
            expected = [row.get(column) for row in done.report["table"]]
            found = [None if pd.isna(value) else value for value in table[column]]
            assert found == [None if value is None else pytest.approx(value, rel=1e-4) for value in expected]
    acceptance = pd.read_csv(done.out / "acceptance.csv")
    assert len(acceptance) == sum(map(len, done.report["sets"].values()))
    assert pd.read_csv(done.out / "blocks.csv")["block"].tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_a_set_that_was_saved_and_a_run_that_was_traced(cli, done, tmp_path):
    model = ll.load(str(done.folder), device="cpu")
    skips, run = tmp_path / "skips.json", tmp_path / "run"
    ll.SkipSet.of_blocks([2, 5]).save(skips, model)
    ll.trace(model, ["Hello there"], out=run, max_new_tokens=4, progress=False)
    words = ["--policies", "fixed, traced", "--skip-set", skips, "--run", run, "--strategy", "valley", "--window", 3]
    words += ["--draft-option", "threshold=0", "--draft-option", "skip_ratio=0.3", "--early-exit", 0, "--limit", 2]
    code, out, err = cli("bench", "speculative", "--model", done.folder, *FEW, *words, "--out", tmp_path / "found")
    assert (code, err) == (0, "")
    report = strictly((tmp_path / "found" / "report.json").read_text())
    rows = {row["way"]: row for row in report["table"]}
    assert list(rows) == list(lines_of(out, rows)) == ["plain", "fixed", "traced"]
    assert rows["fixed"]["skipped"] == "2, 5"
    assert (report["policies"]["traced"]["run"], report["policies"]["traced"]["skip_ratio"]) == (str(run), 0.3)
    assert len(rows["traced"]["skipped"].split(", ")) == round(0.3 * 6)  # of the blocks between the first and the last
    assert (report["strategy"]["name"], report["strategy"]["window"]) == ("valley", 3)
    assert report["early_exit"] is None
    assert report["prompts"] == 2
    assert "blocks" not in report
    assert all(abs(one["margin"]) < 1e-4 for one in report["differences"])
    assert {path.stem for path in (tmp_path / "found").glob("*.png")} == {"speed_up", "acceptance"}


def test_a_policy_that_a_model_cannot_follow_is_left_out_with_its_reason(cli, tiny_folder, tmp_path):
    """What attention and MLP of OPT add cannot be told apart."""
    asked = ["bench", "speculative", "--model", tiny_folder("opt"), *FEW, "--early-exit", 0, "--limit", 2]
    words = [*asked, "--policies", "conflayers,every-other", "--out", tmp_path / "found"]
    code, out, err = cli(*words)
    assert code == 0
    report = strictly((tmp_path / "found" / "report.json").read_text())
    assert list(report["left_out"]) == ["conflayers"]
    assert report["left_out"]["conflayers"] in err
    assert err.count("\n") == 1
    assert list(lines_of(out, ["plain", *POLICIES])) == ["plain", "every-other"]
    code, out, err = cli(*asked, "--policies", "conflayers,knapspec")
    assert (code, out, err.count("\n")) == (2, "", 3)
    assert "conflayers, knapspec" in err.splitlines()[-1]


@pytest.mark.parametrize("family", some(["gpt2", "gemma2"], 1))
def test_a_model_that_transformers_cannot_draft_with_is_measured_all_the_same(cli, tiny_folder, tmp_path, family):
    """transformers' own drafts by the first layers do not work for every family."""
    words = ["--limit", 2, "--policies", "every-other" if family == "gpt2" else "swift"]
    asked = ["bench", "speculative", "--model", tiny_folder(family), *FEW, *words, "--out", tmp_path / "found"]
    code, out, err = cli(*asked)
    assert code == 0, err
    report = strictly((tmp_path / "found" / "report.json").read_text())
    ways = ["plain", words[-1], "generate", "assistant_early_exit"]
    assert [way for way in ways if way not in report["left_out"]] == [row["way"] for row in report["table"]]
    assert set(report["left_out"]) <= {"assistant_early_exit"}
    assert list(lines_of(out, [way.replace("_", " ") for way in ways])) == [
        row["way"].replace("_", " ") for row in report["table"]
    ]


@pytest.mark.parametrize("more", [["--early-exit", 0], []], ids=["without", "with"])
@pytest.mark.parametrize("policies", ["clasp", "swift,every-other"])
def test_a_model_that_takes_nothing_back_is_refused(cli, tiny_folder, policies, more):
    """Whether transformers' own drafts are asked for or not."""
    words = ["--limit", 2, "--policies", policies, *more]
    code, out, err = cli("bench", "speculative", "--model", tiny_folder("mamba"), *FEW, *words)
    assert (code, out) == (2, "")
    assert "mamba" in err


@pytest.mark.parametrize(
    ("said", "arguments"),
    [
        ("did you mean swift?", ["--policies", "swif"]),
        ("--policies x", ["--policies", "conflayers,x"]),
        ("--policies swift,clasp,swift", ["--policies", "swift,clasp,swift"]),
        ("--policies , ", ["--policies", ","]),
        ("needs --run", ["--policies", "traced"]),
        ("needs --skip-set", ["--policies", "swift,fixed"]),
        ("--run x", ["--policies", "swift", "--run", "x"]),
        ("--skip-set x", ["--policies", "swift", "--skip-set", "x"]),
        ("--limit 1", ["--limit", 1]),
        ("--temperature", ["--temperature", 1]),
        ("--early-exit -1", ["--early-exit", -1]),
        ("--max-new-tokens 0", ["--max-new-tokens", 0]),
        ("--strategy vally", ["--strategy", "vally"]),
        ("--draft-option length", ["--draft-option", "length"]),
        ("nothing", ["--dataset", "nothing"]),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_model_is_loaded(cli, done, monkeypatch, said, arguments):
    monkeypatch.setattr("layerlens.cli.options.Loading.load", lambda *_: pytest.fail("the model was loaded"))
    code, out, err = cli("bench", "speculative", "--model", done.folder, *FEW, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


@pytest.mark.parametrize(
    ("said", "arguments"),
    [
        ("refresh", ["--draft-option", "refresh=2"]),
        ("context_window", ["--policies", "every-other", "--draft-option", "context_window=2"]),
        ("length 0", ["--draft-option", "length=0"]),
        ("threshold 2", ["--draft-option", "threshold=2"]),
    ],
)
def test_an_option_that_no_policy_takes_is_refused_before_anything_is_measured(cli, done, monkeypatch, said, arguments):
    monkeypatch.setattr("layerlens.bench.speculative.measure_speculative", lambda *_, **__: pytest.fail("measured"))
    code, out, err = cli("bench", "speculative", "--model", done.folder, *FEW, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


@pytest.mark.parametrize("policy", ["fixed", "traced"])
def test_a_file_that_is_none_is_named(cli, done, tmp_path, policy):
    """Even where other policies could be measured without it."""
    gone = tmp_path / "gone"
    option = "--skip-set" if policy == "fixed" else "--run"
    for policies in (policy, f"every-other,{policy}"):
        code, out, err = cli("bench", "speculative", "--model", done.folder, *FEW, "--policies", policies, option, gone)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert str(gone) in err


def test_earlier_results_are_not_replaced(cli, done):
    before = {path: path.read_bytes() for path in done.out.iterdir()}
    code, out, err = cli("bench", "speculative", "--model", done.folder, *FEW, "--out", done.out)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"--out {done.out}" in err
    assert {path: path.read_bytes() for path in done.out.iterdir()} == before


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_measured(cli, done, monkeypatch, tmp_path):
    monkeypatch.setattr("layerlens.cli.speculative.answered", None)
    (tmp_path / "file").write_text("")
    code, out, err = cli("bench", "speculative", "--model", done.folder, *FEW, "--out", tmp_path / "file")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"--out {tmp_path / 'file'}" in err


def test_a_set_that_was_found_drafts_again(cli, done):
    """The files of sets are those that `fixed` reads."""
    for path in done.out.glob("skipset_*.json"):
        code, out, err = cli(
            *("generate", "--model", done.folder, "--prompt", "Hello", "--max-new-tokens", "9", "--strategy", "last"),
            *("--draft", "fixed", "--draft-option", f"skipped={path}"),
        )
        assert code == 0, err
        skips = ll.SkipSet.load(path, ll.load(str(done.folder), device="cpu"))
        assert f"left out: {skips}" in out


def test_no_part_of_a_run_is_replaced_by_a_report(cli, done, tmp_path):
    run = ll.trace(
        ll.load(str(done.folder), device="cpu"), ["Hello"], out=tmp_path / "run", max_new_tokens=2, progress=False
    )
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    code, out, err = cli("bench", "speculative", "--model", done.folder, *FEW, "--out", run.path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"--out {run.path}" in err
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
