"""`--backend`: the same run through another library, or one sentence."""

import json

import pytest

import layerlens as ll


@pytest.fixture
def trace(cli, tiny_folder, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Hello there, you\nWhat is this?\n")

    def run(*arguments):
        model = ["--model", tiny_folder("llama"), "--prompts", prompts, "--max-new-tokens", 4]
        return cli("trace", *model, *arguments)

    return run


@pytest.mark.parametrize("backend", ["transformer-lens", "nnsight"])
def test_a_trace_through_another_library(trace, tmp_path, backend):
    pytest.importorskip(backend.replace("-", "_"))
    runs = []
    for name in ("transformers", backend):
        code, _, error = trace("--backend", name, "--mode", "replay", "--out", tmp_path / name)
        assert code == 0, error
        runs.append(ll.open_run(tmp_path / name))
    one, other = runs
    assert other.manifest["model"]["backend"] == backend
    assert one.prompts["output"].tolist() == other.prompts["output"].tolist()
    assert abs(one.layers("entropy") - other.layers("entropy")).max() < 1e-5


def test_a_run_begun_through_another_library_is_not_continued(trace, tmp_path):
    pytest.importorskip("nnsight")
    assert trace("--mode", "replay", "--out", tmp_path / "run")[0] == 0
    manifest = tmp_path / "run" / "manifest.json"
    record = json.loads(manifest.read_text())
    assert record["model"]["backend"] == "transformers"
    code, _, error = trace("--mode", "replay", "--backend", "nnsight", "--resume", "--out", tmp_path / "run")
    assert code == 2
    assert "backend" in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--backend", "tensorflow"], "--backend tensorflow"),
        (["--backend", "nnsight", "--mode", "generate"], "--mode generate"),
        (["--backend", "nnsight", "--kl"], "--kl"),
        (["--backend", "nnsight-remote"], "NDIF_API_KEY"),
    ],
)
def test_what_cannot_be_is_one_sentence(trace, tmp_path, monkeypatch, arguments, said):
    nnsight = pytest.importorskip("nnsight")
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", None)
    code, _, error = trace(*arguments, "--out", tmp_path / "run")
    assert code == 2
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
