"""Ways of quantising that need packages of their own: run where those are installed, which `dev` does not ask for."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import layerlens as ll
from layerlens.decode.flops import decoding_flops
from layerlens.models import tiny_model
from tests.models.test_big_models import WIDE, plain, quantised_model, same_run, saved, weights_in_blocks

pytestmark = pytest.mark.filterwarnings("default")  # what those packages warn of is theirs

GROUP, ZERO = 32, 8
ORDERS = {"gptq": range(8), "awq": (0, 2, 4, 6, 1, 3, 5, 7)}  # of the eight values in an int32


def is_installed(package: str) -> bool:
    parent = package.rpartition(".")[0]
    return (not parent or is_installed(parent)) and find_spec(package) is not None


def needs(*packages: str) -> None:
    missing = [package for package in packages if not is_installed(package)]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")


def nibbles(values: torch.Tensor, dim: int, order) -> torch.Tensor:
    """Values 0..15, eight along an axis packed into one int32."""
    parts = [values.unflatten(dim, (-1, 8)).select(dim + 1, place) << (4 * turn) for turn, place in enumerate(order)]
    packed = sum(parts)
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32).contiguous()


def four_bits(weight: torch.Tensor, scheme: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A weight [out, in] as the scheme stores it, and in floats what that stands for."""
    groups = weight.unflatten(1, (-1, GROUP))
    scales = (groups.abs().amax(2, keepdim=True) / 7).half()
    codes = (torch.round(groups / scales.float()) + ZERO).clamp(0, 15).long()
    unpacked = ((codes - ZERO) * scales.float()).flatten(1)
    n_out, n_in = weight.shape
    zeros = torch.full((n_in // GROUP, n_out), ZERO - (scheme == "gptq"))  # which stores one less
    stored = {
        "qweight": nibbles(codes.flatten(1).t(), 0 if scheme == "gptq" else 1, ORDERS[scheme]),
        "qzeros": nibbles(zeros, 1, ORDERS[scheme]),
        "scales": scales.squeeze(2).t().contiguous(),
    }
    return stored | ({"g_idx": (torch.arange(n_in) // GROUP).int()} if scheme == "gptq" else {}), unpacked


@pytest.mark.parametrize("scheme", ["gptq", "awq"])
def test_a_checkpoint_of_four_bits(scheme, tmp_path, run_of):
    needs("gptqmodel", *(["optimum.gptq"] if scheme == "gptq" else []))
    folder = saved(tmp_path / scheme, tiny_model("llama", **WIDE).half())
    tensors, unpacked = load_file(folder / "model.safetensors"), {}
    for name in weights_in_blocks(tensors):
        stored, unpacked[name] = four_bits(tensors.pop(name).float(), scheme)
        tensors |= {f"{name.removesuffix('weight')}{part}": tensor for part, tensor in stored.items()}
    config = {"quant_method": scheme, "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}
    config |= {"checkpoint_format": "gptq"} if scheme == "gptq" else {"version": "gemm", "zero_point": True}
    model = ll.load(quantised_model(folder, config | {"modules_to_not_convert": ["lm_head"]}, tensors))
    assert model.quantization == scheme
    assert model.fingerprint() == ll.load(folder).fingerprint()
    whole = plain(tiny_model("llama", **WIDE).half().float(), unpacked)
    assert decoding_flops(model.hf, window=1) == decoding_flops(whole.hf, window=1)
    one, other = (run_of(m, ["Hello there"], max_new_tokens=0) for m in (whole, model))
    for name in ("norm_ratio", "io_cosine", "entropy"):  # half precision beside float32
        torch.testing.assert_close(
            torch.from_numpy(one.layers(name)), torch.from_numpy(other.layers(name)), atol=0.02, rtol=0.02
        )
    assert ll.generate(model, "abc", strategy=ll.Valley(window=3), max_new_tokens=3).token_ids


def int8_of(package: str, *, head: bool):
    from transformers import QuantoConfig, TorchAoConfig

    left_out = [] if head else ["lm_head"]
    if package == "optimum.quanto":
        return QuantoConfig(weights="int8", modules_to_not_convert=left_out)
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=left_out)


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("package", ["torchao", "optimum.quanto"])
def test_a_config_of_transformers_quantises_while_loading(package, head, tmp_path, run_of):
    needs(package)
    folder = saved(tmp_path / "model", tiny_model("llama", **WIDE))
    whole = ll.load(folder)
    model = ll.load(folder, quantize=int8_of(package, head=head))
    assert model.quantization == package.rpartition(".")[2]
    assert (model.unembed.packed is not None) == head
    assert model.fingerprint() == ll.load(folder, quantize=int8_of(package, head=head)).fingerprint()
    assert model.fingerprint() != whole.fingerprint()
    torch.testing.assert_close(model.unembed.weight.detach(), whole.unembed.weight, atol=0.02, rtol=0)
    one, other = (run_of(m, ["Hello there"], max_new_tokens=0) for m in (whole, model))
    torch.testing.assert_close(
        torch.from_numpy(one.layers("io_cosine")), torch.from_numpy(other.layers("io_cosine")), atol=0.05, rtol=0
    )
    same_run(model, model, run_of)


def compress(folder: Path) -> dict[str, torch.Tensor]:
    """A tiny model in 8 bits with a scale for each row, as compressed-tensors saves it; the weights it stands for."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )

    hf = tiny_model("llama", **WIDE)
    weights = QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="channel")
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    config = QuantizationConfig(config_groups=groups, ignore=["lm_head"], quantization_status="frozen")
    apply_quantization_config(hf, config)
    stood_for = {}
    for name, module in hf.named_modules():
        if hasattr(module, "weight_scale"):
            module.weight_scale.data.copy_(module.weight.detach().abs().amax(1, keepdim=True) / 127)
            steps = (module.weight.detach() / module.weight_scale).round().clamp(-128, 127)
            stood_for[f"{name}.weight"] = steps * module.weight_scale.detach()
    compressor = ModelCompressor(quantization_config=config)
    compressor.compress_model(hf)
    saved(folder, hf)
    compressor.update_config(str(folder))
    return stood_for


def test_compressed_tensors(tmp_path, run_of):
    needs("compressed_tensors")
    stood_for = compress(tmp_path / "model")
    model = ll.load(tmp_path / "model")
    assert model.quantization == "compressed-tensors"
    same_run(plain(tiny_model("llama", **WIDE), stood_for), model, run_of, 1e-3)
