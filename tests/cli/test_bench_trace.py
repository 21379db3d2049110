"""`layerlens bench trace` and `layerlens bench analysis` as a user sees them."""

import json
import sys

import pytest

from layerlens import analysis
from layerlens.cli import bench_trace
from layerlens.lens import coarse
from layerlens.records import store
from layerlens.run import Run
from tests.made_up_run import hybrid_curves, hybrid_kinds, planted, write_run


def test_a_trace_beside_its_floor(cli, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(coarse, "_HAVE_BFLOAT16", (lambda: True,))
    file = tmp_path / "report.json"
    asked = ["bench", "trace", "--model", tiny_folder("llama"), "--device", "cpu", "--tokens", 40, "--rounds", 2]
    code, out, err = cli(*asked, "--lens-precision", "bfloat16", "--json", file)
    assert (code, err) == (0, "")
    report = json.loads(file.read_text())
    assert (report["tokens"], report["layers"], report["vocabulary"]) == (40, 4, 307)
    assert report["lens_precision"] == "bfloat16"
    seconds = report["seconds"]
    assert set(seconds) == {"forward", "products, torch", "products, ours", "trace"}
    assert all(value > 0 for value in seconds.values())
    low, high = (bound * seconds["trace"] / (seconds["forward"] + seconds["products, torch"]) for bound in (0.2, 5))
    assert low < report["over_floor"]["torch"] < high
    assert f"trace = {report['over_floor']['torch']:.2f} x (forward + torch's products)" in out
    if sys.platform == "linux":
        assert f"{report['added_mib']['trace']:,.0f} MiB" in out


def test_the_trace_that_is_measured_is_of_so_many_tokens(tiny_llama, monkeypatch):
    import layerlens as ll

    seen, trace = [], ll.trace

    def counted(*args, **options):
        run = trace(*args, **options)
        seen.append(len(run.positions))
        return run

    monkeypatch.setattr(ll, "trace", counted)
    bench_trace.measure_trace(tiny_llama, 50, 1)
    assert seen == [50, 50]


def test_the_statistics_of_a_run(cli, tmp_path):
    run = write_run(tmp_path / "run", planted(hybrid_curves()), layer_kinds=hybrid_kinds())
    file = tmp_path / "report.json"
    code, out, err = cli("bench", "analysis", "--run", run.path, "--json", file)
    assert code == 0
    report = json.loads(file.read_text())
    assert (report["tokens"], report["layers"]) == (8 * 40, 40)
    timed = set(report["seconds"]) - {"open", "all"}
    assert timed | {"class_shares", "substitution_pairs"} == {*bench_trace.STATISTICS}
    assert "class_shares left out:" in err
    assert all(hasattr(analysis, name) and hasattr(Run, name) for name in timed)
    assert f"{report['seconds']['by_layer']:.2f} s" in out


def test_a_long_run_is_not_read_as_a_whole(cli, tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", planted(hybrid_curves()), layer_kinds=hybrid_kinds())
    pieces_of = Run.pieces
    monkeypatch.setattr(Run, "pieces", lambda self: pieces_of(self, 100))
    read, parts_read = store.read_tokens_table, []

    def noted(path, columns, parts=None):
        parts_read.append(parts)
        return read(path, columns, parts)

    monkeypatch.setattr(store, "read_tokens_table", noted)
    code, out, _ = cli("bench", "analysis", "--run", run.path)
    assert code == 0
    assert "substitutions" in out
    assert "kind_jumps" in out
    assert parts_read
    assert all(parts is not None for parts in parts_read)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trace", "--model", "M", "--tokens", 0], "--tokens 0 is too small"),
        (["trace", "--model", "M", "--rounds", 0], "--rounds 0 is too small"),
        (["trace", "--model", "M", "--json", "/no/such/file"], "--json /no/such/file cannot be written there"),
        (["analysis", "--run", "/no/such/run"], "/no/such/run"),
    ],
)
def test_what_cannot_be_measured(cli, arguments, said):
    code, _, err = cli("bench", *arguments)
    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_text_that_the_model_cannot_read_is_not_tried(cli, tiny_folder):
    code, _, err = cli("bench", "trace", "--model", tiny_folder("llama"), "--tokens", 129)
    assert code == 2
    assert err == "layerlens: --tokens 129 is more than the model's context of 128; lower it\n"
