"""Models over several devices and partly on disk, and quantised ones: the numbers of the same model whole and plain."""

import json
import os
import subprocess
import sys
from pathlib import Path

import accelerate
import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import FineGrainedFP8Config
from transformers.integrations.gguf.gguf_conversion_mapping import GGUF_ARCHS

import layerlens as ll
from layerlens.decode.flops import decoding_flops
from layerlens.models import memory, placement, sizes, tiny_model, tiny_tokenizer
from layerlens.models.placement import place_for
from tests.conftest import needs_smollm2, tiny
from tests.invariants.laws import runs_agree
from tests.models.tiny_gguf import needs_packed_lfm2, tiny_lfm2, write_gguf
from tests.models.two_devices import OPTIONS, TEXTS
from tests.refusals import refused

PROMPTS = ["Hello there, you", "a"]
VALLEY = ll.Valley(window=3)
WIDE = {"hidden_size": 64, "intermediate_size": 128}  # what blocks of quantised weights divide


def saved(folder: Path, hf) -> Path:
    hf.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def same_run(model, other, run_of, tolerance=0.0, **options):
    one, two = (run_of(m, PROMPTS, max_new_tokens=4, batch_size=2, strategy=VALLEY, **options) for m in (model, other))
    runs_agree(one, two, tolerance)
    for name in ("selected_layer", "valley_layer"):
        assert one.positions[name].tolist() == two.positions[name].tolist()
    np.testing.assert_array_equal(one.layers("top_token_id"), two.layers("top_token_id"))
    return two


# --- partly on disk -----------------------------------------------------------------------------------------------


def on_disk(model) -> list[str]:
    return [name for name, parameter in model.hf.named_parameters() if parameter.is_meta]


# a plain one; a tied one with soft-caps and windows; experts, which are stored in another form than they are run in
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_moe"])
def test_what_lies_on_disk_gives_the_same_numbers(family, tmp_path, run_of):
    folder = saved(tmp_path / "model", tiny_model(family))
    whole = ll.load(folder)
    size = sum(parameter.numel() * 4 for parameter in whole.hf.parameters())
    model = ll.load(folder, device_map="auto", max_memory={"cpu": int(size * 0.7)}, offload_folder=tmp_path / "rest")
    n_blocks = {name.split(".")[2] for name in on_disk(model) if ".layers." in name}
    assert n_blocks
    assert len(n_blocks) < model.n_layers
    assert model.record()["device"] == "cpu, disk"
    assert (model.tied, model.fingerprint()) == (whole.tied, whole.fingerprint())
    for options in ({"positions": "all", "kl": True}, {"mode": "replay"}):
        run = same_run(whole, model, run_of, **options)
    assert run.manifest["model"]["device"] == "cpu, disk"
    assert on_disk(model), "offloaded weights go back after each pass"
    ids = torch.tensor([[5, 6, 7]])
    with ll.decoding(model, VALLEY) as log, ll.decoding(whole, VALLEY):
        emitted = [m.hf.generate(ids, max_new_tokens=4, do_sample=False).tolist() for m in (model, whole)]
    assert emitted[0] == emitted[1]
    assert len(log.steps) == 4


def test_the_head_and_the_embedding_are_kept_in_memory(tmp_path):
    folder = saved(tmp_path / "model", tiny_model("llama"))
    model = ll.load(folder, device_map={"": "disk"})
    assert len(on_disk(model)) == len(list(model.blocks[0].named_parameters())) * 4
    kept = [model.hf.lm_head.weight, model.hf.model.norm.weight, model.hf.get_input_embeddings().weight]
    assert not any(parameter.is_meta for parameter in kept)
    before = [parameter.data_ptr() for parameter in kept]
    ll.generate(model, "abc", strategy=VALLEY, max_new_tokens=3)
    assert [parameter.data_ptr() for parameter in kept] == before
    assert model.unembed.weight.data_ptr() == before[0]
    model.hf.lm_head = nn.Linear(48, 307, bias=False)
    with refused(ll.ModelError, problem="unembedding"):
        ll.generate(model, "abc", max_new_tokens=1)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("ran_before", [False, True])
def test_a_model_that_accelerate_dispatched(family, ran_before, tmp_path, run_of):
    whole = tiny(family)
    places = {"model.embed_tokens": "disk", "model.rotary_emb": "cpu", "model.norm": "disk", "lm_head": "disk"}
    places |= {f"model.layers.{index}": "disk" if index % 2 else "cpu" for index in range(whole.n_layers)}
    hf = accelerate.dispatch_model(tiny_model(family), places, offload_dir=tmp_path / "rest")
    if ran_before:
        with torch.no_grad():
            hf(torch.tensor([[1, 2]]))
    model = ll.load(hf, tokenizer=tiny_tokenizer())
    assert on_disk(model)
    assert model.tied == whole.tied
    same_run(whole, model, run_of)
    for options in ({"device_map": "auto"}, {"offload_folder": tmp_path}, {"quantize": "4bit"}):
        with pytest.raises(ll.OptionError, match="in memory"):
            ll.load(hf, tokenizer=tiny_tokenizer(), **options)


def test_a_gguf_with_a_device_map(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", tiny_lfm2())
    model = ll.load(tmp_path / "tiny.gguf", device_map="auto")
    assert model.fingerprint() == ll.load(tmp_path / "tiny.gguf").fingerprint()
    assert not placement.is_spread(model.hf)


# --- several devices ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_devices(tmp_path_factory):
    """Where tiny models were traced on two imitated devices, and what the program said of each family."""
    if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch takes no device that is written in Python")
    out = tmp_path_factory.mktemp("twins")
    program = [sys.executable, Path(__file__).with_name("two_devices.py"), out]
    done = subprocess.run(program, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    return out, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("family", "head"), [("llama", "twin:1"), ("gptj", "twin:0")])
def test_every_state_is_measured_where_it_lies(family, head, two_devices, run_of):
    """An operation on tensors of both devices fails as it would on GPUs, and copies between them are counted."""
    out, said = two_devices[0] / family, two_devices[1][family]
    assert (said["device"], said["head"]) == ("twin:0, twin:1", head)
    stream, states = [2, 4, 48], [8, 48]  # two texts of four tokens
    away = "twin:0" if head == "twin:1" else "twin:1"
    # accelerate hands the stream on; beside it lie the states that entered the first block on the second device, and
    # the two layers on the device without the head send their states there, to be read out
    assert said["states"] == [[stream, "twin:0", "twin:1"], [states, "twin:0", "twin:1"], *[[states, away, head]] * 2]
    for name, options in OPTIONS.items():
        here, there = run_of(tiny(family), TEXTS, **options), ll.open_run(out / name)
        runs_agree(here, there, 1e-5)
        assert here.positions["selected_layer"].tolist() == there.positions["selected_layer"].tolist()
        np.testing.assert_array_equal(here.layers("top_token_id"), there.layers("top_token_id"))
        if options.get("kl"):
            np.testing.assert_allclose(here.layers("kl_last_to_layer"), there.layers("kl_last_to_layer"), atol=1e-5)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two GPUs are needed")
def test_two_gpus_give_the_numbers_of_one(tmp_path, run_of):
    folder = saved(tmp_path / "model", tiny_model("llama"))
    places = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": 1, "lm_head": 1}
    places |= {f"model.layers.{index}": index // 2 for index in range(4)}
    model = ll.load(folder, device_map=places)
    assert model.record()["device"] == "cuda:0, cuda:1"
    for options in ({}, {"mode": "replay"}):
        same_run(ll.load(folder, device="cuda:0"), model, run_of, 1e-4, **options)


# --- what cannot be -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "given", "advice"),
    [
        ({"device": "cpu", "device_map": "auto"}, "cpu", "one of"),
        ({"device_map": "all"}, "all", "auto, balanced"),
        ({"device_map": 0}, 0, "auto, balanced"),
        ({"offload_folder": "rest"}, "rest", "add it"),
        ({"max_memory": {"cpu": "1GB"}}, {"cpu": "1GB"}, "add it"),
        ({"max_memory": {"cpu": "much"}, "device_map": "auto"}, "much", "20GiB"),
        ({"device_map": "auto", "backend": "nnsight"}, "auto", "one of"),
        ({"quantize": "4bit", "backend": "transformer-lens"}, "4bit", "one of"),
        ({"quantize": "2bit"}, "2bit", "8bit"),
        ({"keep_quantized": True}, True, "leave"),
    ],
)
def test_options_that_do_not_fit_each_other(options, given, advice, tiny_folder):
    with refused(ll.OptionError, next(iter(options)), given, advice=advice):
        ll.load(tiny_folder("llama"), **options)


def test_gguf_weights_are_not_quantised_again(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", tiny_lfm2())
    with refused(ll.OptionError, "quantize", "4bit"):
        ll.load(tmp_path / "tiny.gguf", quantize="4bit")


# --- quantised ----------------------------------------------------------------------------------------------------


def quantised_model(folder: Path, config: dict, tensors: dict[str, torch.Tensor]) -> Path:
    """A checkpoint made by hand: these tensors, and its config with that of the quantisation."""
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": config}))
    return folder


def weights_in_blocks(tensors: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, tensor in tensors.items() if tensor.ndim == 2 and ".layers." in name]


def plain(hf, weights: dict[str, torch.Tensor]):
    """The model in float32 with these weights, loaded."""
    hf.load_state_dict(hf.state_dict() | weights)
    return ll.load(hf.float(), tokenizer=tiny_tokenizer())


def test_fp8_is_unpacked_where_there_is_no_gpu(tmp_path, run_of):
    """As transformers does it, to the type of the checkpoint; the estimate says so, to the byte."""
    if torch.cuda.is_available():
        pytest.skip("on a GPU the weights stay in FP8")
    folder = saved(tmp_path / "fp8", tiny_model("llama", **WIDE))
    tensors = load_file(folder / "model.safetensors")
    unpacked, side = {}, 32
    for name in weights_in_blocks(tensors):
        rows, columns = tensors[name].shape
        blocks = tensors[name].view(rows // side, side, columns // side, side)
        scales = blocks.abs().amax((1, 3)) / 448
        packed = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
        unpacked[name] = (packed.float() * scales[:, None, :, None]).view(rows, columns)
        tensors |= {name: packed.view(rows, columns), f"{name}_scale_inv": scales}
    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [side, side]}
    model = ll.load(quantised_model(folder, config, tensors))
    assert (model.hf.dtype, model.quantization) == (torch.float32, None)
    same_run(plain(tiny_model("llama", **WIDE), unpacked), model, run_of, 1e-4)
    assert ll.load(folder, quantize=FineGrainedFP8Config(dequantize=True)).fingerprint() == model.fingerprint()
    assert sized(folder).n_bytes == bytes_of(model)
    with refused(ll.OptionError, "quantize", "4bit", problem="fp8"):
        ll.load(folder, quantize="4bit")


def test_mxfp4_is_unpacked_where_there_is_no_kernel(tmp_path, run_of):
    if torch.cuda.is_available():
        pytest.skip("on a GPU the weights stay in MXFP4")
    sizes = {"hidden_size": 64, "intermediate_size": 96}
    folder = saved(tmp_path / "mxfp4", tiny_model("gpt_oss", **sizes))
    tensors, unpacked = load_file(folder / "model.safetensors"), {}
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = tensors.pop(name).shape  # [experts, in, out], packed as [experts, out, in / 32, 16]
        codes = torch.randint(16, (experts, rows, columns), generator=torch.Generator().manual_seed(1))
        exponents = torch.randint(122, 126, (experts, rows, columns // 32), generator=torch.Generator().manual_seed(2))
        factors = torch.exp2(exponents.float() - 127).repeat_interleave(32, dim=2)
        unpacked[name] = (values[codes] * factors).transpose(1, 2).contiguous()
        packed = (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8)
        tensors |= {f"{name}_blocks": packed.view(experts, rows, columns // 32, 16).contiguous()}
        tensors |= {f"{name}_scales": exponents.to(torch.uint8)}
    model = ll.load(quantised_model(folder, {"quant_method": "mxfp4"}, tensors))
    assert model.quantization is None
    assert {parameter.dtype for parameter in model.hf.parameters()} == {torch.float32}
    same_run(plain(tiny_model("gpt_oss", **sizes), unpacked), model, run_of, 1e-4)
    assert sized(folder).n_bytes == bytes_of(model)


@needs_packed_lfm2
@pytest.mark.parametrize("tied", [False, True])
def test_gguf_weights_can_stay_packed(tied, tmp_path, run_of):
    """Bit for bit the numbers of the unpacked file, in less memory; embedding and head are packed too."""
    write_gguf(tmp_path / "tiny.gguf", tiny_lfm2(), tied=tied)
    whole, model = (ll.load(tmp_path / "tiny.gguf", keep_quantized=keep) for keep in (False, True))
    assert bytes_of(model) < bytes_of(whole) / 2
    assert model.unembed.packed is model.head
    assert torch.equal(model.unembed.weight, whole.unembed.weight)
    assert (model.tied, model.quantization) == (tied, "gguf")
    assert model.fingerprint() == ll.load(tmp_path / "tiny.gguf", keep_quantized=True).fingerprint()
    assert model.fingerprint() != whole.fingerprint()
    assert decoding_flops(model.hf, window=1) == decoding_flops(whole.hf, window=1)
    for options in ({}, {"mode": "replay"}):
        same_run(whole, model, run_of, **options)
    model.hf.lm_head = nn.Linear(64, 307, bias=False)
    with refused(ll.ModelError, problem="unembedding"):
        ll.generate(model, "abc", max_new_tokens=1)


def test_products_with_packed_weights():
    """Against matrices that gguf itself packs and unpacks; two experts of Q8_0."""
    from layerlens.models import packed_gguf

    rng, kind = np.random.default_rng(0), gguf.GGMLQuantizationType.Q8_0
    packed = gguf.quants.quantize(rng.standard_normal((2, 5, 64), dtype=np.float32), kind)
    experts, blocks = torch.from_numpy(gguf.quants.dequantize(packed, kind)), torch.from_numpy(packed)
    states = torch.from_numpy(rng.standard_normal((3, 64), dtype=np.float32))
    rows, ids = torch.tensor([4, 0, 4]), torch.tensor([[1, 0], [1, 1], [0, 1]])
    torch.testing.assert_close(packed_gguf._mul_mat_vec(blocks[1], states, kind, 5), states @ experts[1].t())
    assert torch.equal(packed_gguf._get_rows(blocks[0], rows, kind, 64, torch.float32), experts[0][rows])
    expected = torch.stack(
        [torch.stack([experts[i] @ state for i in chosen]) for chosen, state in zip(ids, states, strict=True)]
    )
    torch.testing.assert_close(packed_gguf._mul_mat_id(blocks, states, ids, kind, 5), expected)


def test_gguf_weights_that_cannot_stay_packed():
    needs_smollm2()
    with refused(ll.ModelError, "keep_quantized", "llama", problem=", ".join(sorted(GGUF_ARCHS))):
        ll.load("smollm2-135m-instruct", keep_quantized=True)


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_bitsandbytes_quantises_while_loading(bits, tmp_path, run_of, caplog):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    folder = saved(tmp_path / "model", tiny_model("llama", **WIDE))
    whole, model = ll.load(folder), ll.load(folder, quantize=bits)
    kind = bitsandbytes.nn.Linear4bit if bits == "4bit" else bitsandbytes.nn.Linear8bitLt
    assert sum(isinstance(module, kind) for module in model.hf.modules()) == 7 * 4
    assert (model.quantization, model.unembed.packed) == (f"bitsandbytes {bits[0]}-bit", None)
    assert model.fingerprint() == ll.load(folder, quantize=bits).fingerprint() != whole.fingerprint()
    assert decoding_flops(model.hf, window=1) == decoding_flops(whole.hf, window=1)
    assert sized(folder, quantize=bits).n_bytes == pytest.approx(bytes_of(model), rel=0.1)
    one, other = (run_of(m, PROMPTS, max_new_tokens=0) for m in (whole, model))
    for name in ("norm_ratio", "io_cosine", "entropy"):  # coarse steps, of random weights
        left, right = one.layers(name), other.layers(name)
        assert 0 < np.abs(left - right).mean() < 0.2 * np.abs(left).mean(), name
    generated, replayed = (run_of(model, PROMPTS, max_new_tokens=4, mode=m) for m in ("generate", "replay"))
    np.testing.assert_allclose(generated.layers("entropy"), replayed.layers("entropy"), atol=0.05)
    assert "MatMul8bitLt" not in caplog.text  # said in every layer of every pass


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_a_quantised_unembedding_is_read_out_as_the_matrix_it_stands_for(bits, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    sizes = WIDE | {"vocab_size": 320}  # its kernel for AVX512 wants words by 32
    folder = saved(tmp_path / "model", tiny_model("llama", **sizes))
    model = ll.load(folder, quantize=BitsAndBytesConfig(**{bits: True}, llm_int8_skip_modules=[]))
    own = tiny_model("llama", **sizes).lm_head.weight.detach()
    assert model.unembed.packed is model.head
    assert model.unembed.weight.shape == own.shape
    assert 0 < float((model.unembed.weight - own).abs().max()) < 0.2 * float(own.abs().max())
    run_ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        logits = model.hf(run_ids).logits[0]
        last = model.decoder(run_ids).last_hidden_state[0]  # normed already
    read = torch.nn.functional.linear(last.float(), model.unembed.weight.float())
    torch.testing.assert_close(read, logits.float(), atol=0.02 * float(logits.abs().max()), rtol=0)
    assert ll.generate(model, "abc", strategy=VALLEY, max_new_tokens=3).token_ids


# --- how large ----------------------------------------------------------------------------------------------------


def bytes_of(model) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.hf.parameters())


def sized(folder, **options) -> sizes.Weights:
    from layerlens.models import loading

    weights = loading.sized(str(folder), place_for("cpu"), **options).weights
    assert weights is not None
    return weights


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_moe"])
def test_the_weights_are_counted_to_the_byte(family, tmp_path):
    """From one file, from several with an index, in another type, and from the config alone."""
    hf = tiny_model(family)
    whole = sum(parameter.numel() * 4 for parameter in hf.parameters())
    folder = saved(tmp_path / "one", hf)
    assert sized(folder).n_bytes == whole
    assert sized(folder, dtype="bfloat16").n_bytes == whole // 2
    hf.save_pretrained(tmp_path / "many", max_shard_size="50KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    assert sized(tmp_path / "many").n_bytes == whole
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")  # which is not read for its size
    assert sized(folder).n_bytes == whole
    assert "config" in sized(folder).kind


def test_a_model_that_cannot_fit_is_refused_before_its_weights_are_read(cli, tmp_path, monkeypatch):
    folder = saved(tmp_path / "model", tiny_model("llama"))
    whole = sized(folder).n_bytes
    monkeypatch.setattr(memory, "_meminfo", lambda: {"MemAvailable": whole - 2, "SwapFree": 1})
    monkeypatch.setattr(type(tiny_model("llama")), "from_pretrained", None)  # not called
    for options in ({}, {"device_map": "auto"}, {"device_map": "auto", "max_memory": {"cpu": 1000}}):
        with refused(ll.ModelError, problem="0.4 MiB"):
            ll.load(folder, **options)
    code, _, err = cli("generate", "--model", folder, "--prompt", "a")
    assert code == 2
    assert err.split()[1] == str(folder)
    assert "0.4 MiB" in err
    assert len(err.splitlines()) == 1
    monkeypatch.undo()
    monkeypatch.setattr(memory, "_meminfo", lambda: {"MemAvailable": whole - 2, "SwapFree": 2})
    assert ll.load(folder).n_layers == 4
    monkeypatch.setattr(memory, "_meminfo", dict)  # not known: never refused
    assert ll.load(folder).n_layers == 4
    monkeypatch.setattr(memory, "_meminfo", lambda: {"MemAvailable": 1})
    options = {"device_map": "auto", "max_memory": {"cpu": whole // 2}, "offload_folder": tmp_path / "rest"}
    assert on_disk(ll.load(folder, **options))


@needs_packed_lfm2
def test_a_gguf_is_as_large_as_it_is_unpacked(tmp_path, monkeypatch):
    write_gguf(tmp_path / "tiny.gguf", tiny_lfm2())
    whole, model = (ll.load(tmp_path / "tiny.gguf", keep_quantized=keep) for keep in (False, True))
    assert sized(tmp_path / "tiny.gguf").n_bytes == bytes_of(whole)
    assert sized(tmp_path / "tiny.gguf", keep_quantized=True).n_bytes == bytes_of(model)
    monkeypatch.setattr(memory, "_meminfo", lambda: {"MemAvailable": bytes_of(model)})
    with refused(ll.ModelError, problem="Q8_0", advice="keep_quantized"):
        ll.load(tmp_path / "tiny.gguf")
    assert ll.load(tmp_path / "tiny.gguf", keep_quantized=True).quantization == "gguf"


def test_room_is_left_on_the_first_gpu_for_a_head_that_would_be_offloaded(monkeypatch, tiny_folder):
    from transformers import AutoConfig

    config, place = AutoConfig.from_pretrained(tiny_folder("llama")), place_for(None, "auto")
    monkeypatch.setattr(memory, "room", lambda _: {"cuda:0": 1_000_000, "cuda:1": 500_000, "cpu": 2_000_000})
    fits, large = (sizes.Weights("m", n_bytes, "") for n_bytes in (1_350_000, 1_350_001))
    assert memory.with_room_for_head(place, fits, config) == place
    head = 307 * 48 * 4
    limits = {0: 900_000 - head, 1: 450_000, "cpu": 1_800_000}
    assert memory.with_room_for_head(place, large, config).max_memory == limits


def test_the_estimate_is_what_the_process_grows_by(tmp_path):
    """A model of 120 MiB, in a process that has loaded another one before."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("no /proc/self/status")
    small = saved(tmp_path / "small", tiny_model("llama"))
    wide = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "vocab_size": 12000}
    large = saved(tmp_path / "large", tiny_model("llama", **wide))
    program = (
        "import sys, layerlens as ll\n"
        "def resident():\n"
        "    return int(open('/proc/self/status').read().split('VmRSS:')[1].split()[0]) * 1024\n"
        "ll.load(sys.argv[1])\n"
        "before = resident()\n"
        "model = ll.load(sys.argv[2])\n"
        "print(resident() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, small, large], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # less where the allocator gives out again what the first model left
    assert 0.8 < int(done.stdout) / sized(large).n_bytes < 1.1
