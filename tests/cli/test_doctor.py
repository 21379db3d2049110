"""`layerlens doctor`: versions, and what a model will need beside what there is."""

import re
import shutil

import pytest
import torch

from layerlens.lens.tiled import read, tile_bytes
from layerlens.models import memory, tiny_model, tiny_tokenizer
from layerlens.models.placement import place_for
from layerlens.support import estimate as estimates
from tests.conftest import needs_smollm2, tiny
from tests.models.tiny_gguf import tiny_lfm2, write_gguf

_LINE = re.compile(r"^(\w[\w:]*) +([\d.,]+ (?:GiB|MiB)|not known) +(.*)$")


def lines_of(out: str) -> dict[str, tuple[str, str]]:
    found = (_LINE.match(line) for line in out.splitlines())
    return {match[1]: (match[2], match[3]) for match in found if match}


def test_versions_without_a_model(cli):
    code, out, _ = cli("doctor")
    assert code == 0
    assert "transformers" in out
    assert "gpu" in out


def test_a_model_beside_what_is_free(cli, tiny_folder, monkeypatch):
    folder = tiny_folder("llama")
    monkeypatch.setattr(memory, "_meminfo", lambda: {"MemAvailable": 64 * 2**20})
    code, out, err = cli("doctor", "--model", folder, "--device", "cpu", "--tokens", 512, "--batch-size", 4)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"{folder} (llama, 4 layers)"
    rows = lines_of(out)
    assert list(rows) == ["weights", "cache", "tracer", "together", "cpu"]
    assert rows["weights"] == ("0.4 MiB", "in float32")
    # keys and values of 4 layers, 2 heads of 16 values, 4 bytes each
    assert rows["cache"] == (f"{2 * 4 * 2 * 16 * 4 * 4 * 512 / 2**20:.1f} MiB", rows["cache"][1])
    assert "4 x 512 tokens" in rows["cache"][1]
    assert rows["cpu"] == ("64.0 MiB", "free")
    assert out.splitlines()[-1] == "fits"


def test_a_model_that_does_not_fit(cli, tiny_folder, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_meminfo", lambda: {"MemAvailable": 2**20})
    asked = ["doctor", "--model", tiny_folder("llama")]
    code, out, _ = cli(*asked)
    assert code == 1
    assert out.splitlines()[-1] == "does not fit"
    found = estimates.estimate(tiny_folder("llama"), place_for("cpu"))
    monkeypatch.setattr(memory, "_meminfo", lambda: {"MemAvailable": found.n_bytes - found.weights.n_bytes // 2})
    assert cli(*asked)[0] == 1
    code, out, _ = cli(*asked, "--device-map", "auto", "--offload-folder", tmp_path)
    assert code == 0
    assert out.splitlines()[-1] == "fits, with the remaining weights on disk"
    monkeypatch.setattr(memory, "_meminfo", dict)
    code, out, _ = cli(*asked)
    assert code == 0
    assert out.splitlines()[-1] == "whether it fits is not known here"


def test_only_weights_go_to_disk(cli, tiny_folder, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_meminfo", lambda: {"MemAvailable": 64 * 2**20})
    asked = ["doctor", "--model", tiny_folder("llama"), "--device-map", "auto", "--offload-folder", tmp_path]
    assert cli(*asked)[0] == 0
    code, out, _ = cli(*asked, "--tokens", 1_000_000)  # whose keys and values do not
    assert (code, out.splitlines()[-1]) == (1, "does not fit")
    write_gguf(tmp_path / "tiny.gguf", tiny_lfm2())
    monkeypatch.setattr(memory, "_meminfo", lambda: {"MemAvailable": 2**17})
    asked[2] = tmp_path / "tiny.gguf"  # which cannot lie on disk
    assert cli(*asked)[0] == 1


def test_a_cache_that_is_not_known_is_not_called_nothing(cli, tiny_folder, monkeypatch):
    monkeypatch.setattr(estimates, "_cache_bytes", lambda *_: None)
    code, out, _ = cli("doctor", "--model", tiny_folder("llama"))
    assert code == 0
    assert lines_of(out)["cache"][0] == "not known"
    assert out.splitlines()[-1] == "whether it fits is not known here"


def test_what_trace_would_refuse(cli, tiny_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder("llama"), folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:3000])
    assert "no weights" in cli("doctor", "--model", folder)[2]
    (folder / "model.safetensors").unlink()
    code, _, err = cli("doctor", "--model", folder)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "no weights" in err
    assert "is empty" in cli("doctor", "--model", "")[2]
    needs_smollm2()
    code, _, err = cli("doctor", "--model", "smollm2-135m-instruct", "--keep-quantized")
    assert code == 2
    assert "smollm2-135m-instruct (llama)" in err
    assert "--keep-quantized" in err


def test_half_the_type_is_half_the_size(cli, tiny_folder):
    sizes = [lines_of(cli("doctor", "--model", tiny_folder("llama"), "--dtype", dtype)[1]) for dtype in DTYPES]
    assert [rows["weights"][0] for rows in sizes] == ["0.4 MiB", "0.2 MiB"]
    assert [rows["cache"][0] for rows in sizes] == ["2.0 MiB", "1.0 MiB"]


DTYPES = ("float32", "bfloat16")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tokens", "5"], "with --model;"),
        (["--dtype", "float32"], "with --model;"),
        (["--model", "FOLDER", "--tokens", "0"], "--tokens 0"),
        (["--model", "FOLDER", "--batch-size", "0"], "--batch-size 0"),
        (["--model", "FOLDER", "--dtype", "int3"], "--dtype int3"),
        (["--model", "FOLDER", "--device-map", "all"], "--device-map all"),
        (["--model", "no-such/model"], "'no-such/model'"),
    ],
)
def test_what_cannot_be_estimated(cli, tiny_folder, arguments, said):
    code, _, err = cli("doctor", *(tiny_folder("llama") if word == "FOLDER" else word for word in arguments))
    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1


def left_over(outputs) -> int:
    """Bytes that a pass leaves for the next one."""
    memory_of = next(value for name in ("past_key_values", "cache_params") if (value := outputs.get(name)) is not None)
    found = {}
    for layer in memory_of.layers:
        for value in vars(layer).values():
            for tensor in (
                value if isinstance(value, list | tuple) else value.values() if isinstance(value, dict) else [value]
            ):
                if isinstance(tensor, torch.Tensor) and tensor.numel() > 1:
                    found[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
    return sum(found.values())


# full attention; windows; latent attention; recurrences and full attention; a mixer alone; attention beside a mixer
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "deepseek_v2", "qwen3_5_text", "mamba2", "falcon_h1"])
def test_the_cache_is_that_of_a_real_pass(family, tmp_path):
    hf = tiny_model(family)
    hf.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with torch.no_grad():
        outputs = hf(torch.zeros(2, 11, dtype=torch.long), use_cache=True)
    found = estimates.estimate(str(tmp_path), place_for("cpu"), batch_size=2, n_tokens=11)
    assert found.cache_bytes == pytest.approx(left_over(outputs), rel=0.02)


def test_a_tile_is_what_reading_out_takes():
    """Against the most bytes that are alive at once while states are read, by torch's own account."""
    model = tiny("llama", vocab_size=5000)
    states = torch.randn(600, model.d_model)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        read(states, model.unembed)
    alive = most = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            alive += event.nbytes()
            most = max(most, alive)
    assert most == pytest.approx(tile_bytes(model.d_model, torch.float32, torch.device("cpu")), rel=0.25)
