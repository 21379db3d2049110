"""The long table of a run beside a plain reading of its own tables."""

import math

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import layerlens as ll
from layerlens.records import tidy
from tests.refusals import refused

PER_LAYER = ("norm_ratio", "io_cosine", "attn_ratio", "mlp_ratio", "entropy", "next_log_prob", "half_entropy")
WHOLE = ("top_token_id", "next_rank", "half_top_token_id")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from tests.conftest import tiny

    texts = ["Hello there", 'What, is "this"?\nA line', "a"]
    asked = {"targets": True, "top": 2, "sublayers": True, "positions": "all"}
    out = tmp_path_factory.mktemp("tidy") / "run"
    return ll.trace(tiny("llama"), texts, out=out, max_new_tokens=3, batch_size=2, progress=False, **asked)


def texts_of(run):
    """The text of every id; the tiny model emits some that its tokenizer does not know."""
    return {token_id: run.words.get(token_id, f"#{token_id}") for token_id in range(run.manifest["model"]["n_vocab"])}


def slow(run):
    """The rows of the long table, one after the other, from `run.tokens` and `run.words` alone."""
    texts = texts_of(run)
    for token in run.tokens.to_dict("records"):
        for layer in range(1, run.n_layers + 1):
            row = {name: token[name] for name in ("prompt_id", "position", "token_id", "is_generated", "perturbed")}
            row |= {name: token[name] for name in ("valley_layer", "selected_layer")}
            followed = not pd.isna(token["next_token_id"])
            row["next_token_id"] = int(token["next_token_id"]) if followed else None
            row["next_token"] = texts[int(token["next_token_id"])] if followed else None
            row["token"] = texts[token["token_id"]]
            row["layer"] = layer
            row |= {name: token[name][layer - 1] for name in (*PER_LAYER, *WHOLE)}
            row["top_token"] = texts[token["top_token_id"][layer - 1]]
            for k in (1, 2):
                row[f"top_{k}_token_id"] = token["top_k_token_ids"][layer - 1][k - 1]
                row[f"top_{k}_token"] = texts[row[f"top_{k}_token_id"]]
                row[f"top_{k}_prob"] = token["top_k_probs"][layer - 1][k - 1]
            yield row


def same(given, expected):
    if expected is None or (isinstance(expected, float | np.floating) and math.isnan(expected)):
        return pd.isna(given)
    if isinstance(expected, float | np.floating):
        return np.float32(given) == np.float32(expected)
    return given == expected


@pytest.mark.parametrize("rows_at_a_time", [5, 200_000])
def test_both_files_hold_every_token_and_layer(run, tmp_path, monkeypatch, rows_at_a_time):
    monkeypatch.setattr(tidy, "_ROWS", rows_at_a_time)
    parquet = pd.read_parquet(run.to_parquet(tmp_path / "run.parquet"))
    csv = pd.read_csv(
        run.to_csv(tmp_path / "run.csv"), keep_default_na=False, na_values=["nan"], dtype={"prompt_id": str}
    )
    expected = list(slow(run))
    assert len(parquet) == len(csv) == len(expected) == len(run.tokens) * run.n_layers
    assert list(csv.columns) == list(parquet.columns)
    for name in expected[0]:
        for given, row in zip(parquet[name], expected, strict=True):
            assert same(given, row[name]), (name, given, row[name])
        if pd.api.types.is_float_dtype(parquet[name]):
            np.testing.assert_array_equal(pd.to_numeric(csv[name]).astype(np.float32), parquet[name].astype(np.float32))
        elif name != "next_token":  # "" where csv has nothing
            assert csv[name].tolist() == parquet[name].tolist(), name
    assert any("\n" in text or '"' in text for text in parquet["token"]), "the csv had something to quote"


def test_nothing_that_grows_with_the_run_is_held(run, tmp_path, monkeypatch):
    sizes = []
    long = tidy._long
    monkeypatch.setattr(tidy, "_ROWS", 3 * run.n_layers)
    monkeypatch.setattr(tidy, "_long", lambda run, rows: sizes.append(len(rows)) or long(run, rows))
    run.to_parquet(tmp_path / "run.parquet")
    assert max(sizes) == 3
    assert sum(sizes) == len(run.positions)
    assert pq.ParquetFile(tmp_path / "run.parquet").num_row_groups == len(sizes) - 1


@pytest.mark.parametrize("name", ["run.csv", "run.parquet"])
def test_the_command_line_writes_the_same(run, tmp_path, cli, name):
    code, out, err = cli("export", run.path, "--out", tmp_path / name)
    assert (code, out, err) == (0, f"{tmp_path / name}\n", "")
    write = run.to_csv if name.endswith("csv") else run.to_parquet
    assert (tmp_path / name).read_bytes() == write(tmp_path / f"again-{name}").read_bytes()


def test_what_cannot_be_written_is_refused_and_nothing_is_left(run, tmp_path, cli):
    with refused(ll.OptionError, "out", tmp_path / "run.xlsx", advice=".csv"):
        tidy.write_tidy(run, tmp_path / "run.xlsx")
    before = (run.path / "prompts.parquet").read_bytes()
    with refused(ll.OptionError, "out", run.path / "prompts.parquet", problem="in the run"):
        run.to_parquet(run.path / "prompts.parquet")
    assert (run.path / "prompts.parquet").read_bytes() == before
    with refused(ll.OptionError, "out", tmp_path / "no" / "run.csv", problem="cannot be written"):
        run.to_csv(tmp_path / "no" / "run.csv")
    assert cli("export", run.path, "--out", tmp_path / "run.txt")[0] == 2
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays_where_the_run_is_damaged(run, tmp_path):
    import shutil

    shutil.copytree(run.path, tmp_path / "run")
    next((tmp_path / "run" / "tokens").iterdir()).write_bytes(b"damaged")
    (tmp_path / "run.csv").write_text("as it was")
    with pytest.raises(ll.RunError):
        ll.open_run(tmp_path / "run").to_csv(tmp_path / "run.csv")
    assert (tmp_path / "run.csv").read_text() == "as it was"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.csv"]


def test_a_table_to_look_at_has_a_row_per_token_and_no_lists(run):
    table, texts = run.by_token(), texts_of(run)
    assert len(table) == len(run.tokens)
    for (_, shown), (_, token) in zip(table.iterrows(), run.tokens.iterrows(), strict=True):
        top = list(token["top_token_id"])
        kept = next(layer for layer in range(1, len(top) + 1) if set(top[layer - 1 :]) == {top[-1]})
        assert (shown["token"], shown["kept_from"]) == (texts[token["token_id"]], kept)
        assert shown["entropy"] == token["entropy"][-1]
        followed = token["next_token_id"]
        assert shown["next_token"] == (None if pd.isna(followed) else texts[int(followed)])
        assert not any(isinstance(value, list | np.ndarray) for value in shown)


@pytest.mark.parametrize("name", ["run.cvs", "run", "", "run.parquet", "nowhere/run.csv", "run/run.csv"])
def test_a_csv_is_written_to_a_csv_file_outside_the_runs(run, tmp_path, monkeypatch, name):
    monkeypatch.chdir(run.path.parent)
    before = sorted(run.path.parent.rglob("*"))
    with refused(ll.OptionError, "out"):
        run.to_csv(name)
    with refused(ll.OptionError, "out"):
        run.to_parquet(name.replace(".parquet", ".csv"))
    assert sorted(run.path.parent.rglob("*")) == before


def test_a_run_writes_its_own_report(run, tmp_path):
    path = run.report(tmp_path / "page.html")
    assert path.read_text(encoding="utf-8").lstrip().startswith("<!")
