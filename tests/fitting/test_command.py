"""`layerlens fit-lens` as a user types it."""

import pytest
import torch
from safetensors.torch import save_file

import layerlens as ll
from layerlens.lens.files import read_lens
from layerlens.lens.opening import open_lens
from tests.fitting.test_linear import texts

pytestmark = pytest.mark.filterwarnings("ignore::layerlens.errors.Notice")


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(texts(20)))
    return path


def test_a_lens_is_fitted_written_and_its_gain_shown(cli, tiny_folder, tmp_path, prompts):
    out = tmp_path / "lens.safetensors"
    folder = tiny_folder("llama")
    code, printed, errors = cli("fit-lens", "linear", "--model", folder, "--prompts", prompts, "--out", out)
    assert code == 0, errors
    gain = read_lens("linear", out).fit["gain"]
    for layer, logit, lens in zip(gain["layer"], gain["kl_logit"], gain["kl_lens"], strict=True):
        row = next(line.split() for line in printed.splitlines() if line.split()[:1] == [str(layer)])
        assert row[1] == f"{logit:.3f}"
        assert f"{lens:.3f}" in row
    assert "s per 10,000 tokens" in printed
    assert f"linear:{out}" in printed
    model = ll.load(folder)
    assert list(open_lens(f"linear:{out}", model).layers) == list(range(model.n_layers + 1))


def test_a_second_time_is_refused_and_resume_shows_it_again(cli, tiny_folder, tmp_path, prompts):
    command = ["fit-lens", "linear", "--model", tiny_folder("llama"), "--prompts", prompts]
    command += ["--out", tmp_path / "lens.safetensors"]
    first = cli(*command)
    code, _, error = cli(*command)
    assert (code, error.count("\n")) == (2, 1)
    assert "--out" in error
    assert cli(*command, "--resume")[:2] == first[:2]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--out", "lens.pt", "--dataset", "sample"], "--out"),
        (["--out", "lens.safetensors"], "--dataset"),
        (["--out", "lens.safetensors", "--dataset", "sample", "--prompts", "x.txt"], "--prompts"),
        (["--out", "lens.safetensors", "--prompts", "x.txt", "--data-file", "y.txt"], "--data-file"),
        (["--out", "lens.safetensors", "--dataset", "sample", "--max-length", "1"], "--max-length"),
        (["--out", "lens.safetensors", "--dataset", "sample", "--skip-first", "-1"], "--skip-first"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence_before_the_model_is_loaded(
    arguments, named, cli, tiny_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, printed, error = cli("fit-lens", "linear", "--model", tiny_folder("llama"), *arguments)
    assert (code, printed, error.count("\n")) == (2, "", 1)
    assert named in error


def test_a_tuned_lens_begins_as_the_one_that_is_given(cli, tiny_folder, tmp_path, prompts):
    folder, linear, out = tiny_folder("llama"), tmp_path / "linear.safetensors", tmp_path / "tuned.safetensors"
    given = ["--model", folder, "--prompts", prompts]
    assert cli("fit-lens", "linear", *given, "--out", linear)[0] == 0
    command = ["fit-lens", "tuned", *given, "--out", out, "--steps", 5, "--states", 8, "--learning-rate", 0.01]
    code, printed, errors = cli(*command, "--from", f"linear:{linear}")
    assert code == 0, errors
    said = read_lens("tuned", out).fit
    assert (said["steps"], said["states"], said["learning_rate"], said["start"]) == (5, 8, 0.01, f"linear:{linear}")
    assert f"tuned:{out}" in printed
    code, _, error = cli(*command[:-6], "--from", "logit", "--out", tmp_path / "other.safetensors")
    assert (code, error.count("\n")) == (2, 1)
    assert "--from logit" in error


def test_a_jacobian_lens_is_fitted(cli, tiny_folder, tmp_path, prompts):
    pytest.importorskip("transformer_lens")
    out = tmp_path / "lens.pt"
    command = ["fit-lens", "jacobian", "--model", tiny_folder("llama"), "--prompts", prompts, "--out", out]
    code, printed, errors = cli(*command, "--most-texts", 2, "--max-length", 40, "--dim-batch", 4)
    assert code == 0, errors
    said = read_lens("jacobian", out).fit
    assert (said["n_prompts"], said["max_seq_len"], said["dim_batch"]) == (2, 40, 4)
    assert f"jacobian:{out}" in printed


def test_a_lens_is_replaced_and_no_other_file(cli, tiny_folder, tmp_path, prompts):
    lens, other = tmp_path / "lens.safetensors", tmp_path / "other.safetensors"
    words = ("fit-lens", "linear", "--model", tiny_folder("llama"), "--prompts", prompts, "--out")
    assert cli(*words, lens)[0] == 0
    assert cli(*words, lens, "--seed", 1)[0] == 2
    before = lens.read_bytes()
    assert cli(*words, lens, "--seed", 1, "--overwrite")[0] == 0
    assert lens.read_bytes() != before
    assert cli(*words, tmp_path / "fresh.safetensors", "--seed", 1)[0] == 0
    fits = [read_lens("linear", tmp_path / name).fit for name in ("lens.safetensors", "fresh.safetensors")]
    assert fits[0]["gain"] == fits[1]["gain"]
    save_file({"weight": torch.zeros(2, 2)}, other)
    before = other.read_bytes()
    code, _, error = cli(*words, other, "--overwrite")
    assert (code, error.count("\n")) == (2, 1)
    assert other.read_bytes() == before
    assert sorted(path.name for path in tmp_path.glob("*.fitting")) == []
