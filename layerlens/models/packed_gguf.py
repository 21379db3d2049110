"""GGUF weights that stay packed as in the file. Transformers' kernel computes with them, or torch where there is
none."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.gguf import dequant, kernels
from transformers.integrations.gguf.gguf_conversion_mapping import GGUF_ARCHS
from transformers.integrations.gguf.reader import read_gguf_metadata

from layerlens.compat import set_gguf_kernel
from layerlens.errors import ModelError, first_sentence, is_out_of_memory, spelled
from layerlens.models.gguf import load_gguf


def load_packed(
    source: str, path: Path, dtype: torch.dtype, **arguments: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """As `load_gguf`, but the weights stay packed.

    Raises:
        ModelError: as `load_gguf`, and where transformers cannot keep any weight of the file packed.

    transformers 5.23 keeps the weights of LFM2 and Qwen 3.5 packed.
    """
    refuse_other_architectures(source, path)
    _provide_kernel()
    hf, tokenizer = load_gguf(source, path, dtype, packed=True, **arguments)
    if not any(parameter.dtype == torch.uint8 for parameter in hf.parameters()):
        advice = f"leave {spelled('keep_quantized', True)} out"
        raise ModelError(f"{source} has no weight that is packed", advice, option="keep_quantized", given=source)
    return hf, tokenizer


def refuse_other_architectures(source: str, path: Path) -> None:
    """ModelError where transformers cannot keep any weight of the file packed."""
    try:
        architecture = read_gguf_metadata(str(path))[0]["general.architecture"]
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"{source} could not be loaded as GGUF ({first_sentence(error)})", "check the file", given=source
        ) from error
    if architecture not in GGUF_ARCHS:
        raise ModelError(
            f"{source} ({architecture}) cannot stay quantised: this transformers keeps GGUF weights packed for "
            f"{', '.join(sorted(GGUF_ARCHS))}",
            f"leave {spelled('keep_quantized', True)} out",
            option="keep_quantized",
            given=architecture,
        )


def _provide_kernel() -> None:
    """Transformers unpacks the whole model where no compiled kernel is published for the machine, or the package that
    fetches it is missing. In that case this kernel replaces it, for every packed model of the process."""
    if not kernels.get_gguf_kernel():
        set_gguf_kernel(_IN_TORCH)


def _dequantize(blocks: Tensor, ggml_type: int, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return dequant.dequantize(blocks, ggml_type, dtype).reshape(rows, columns)


def _get_rows(blocks: Tensor, indices: Tensor, ggml_type: int, columns: int, dtype: torch.dtype) -> Tensor:
    return _dequantize(blocks.index_select(0, indices), ggml_type, len(indices), columns, dtype)


def _mul_mat_vec(blocks: Tensor, states: Tensor, ggml_type: int, n_out: int) -> Tensor:
    """states [rows, n_in] times the packed matrix [n_out, ...]: [rows, n_out]."""
    step = max(1, kernels.DEQUANT_CHUNK_ELEMS // states.shape[1])
    parts = (
        states @ _dequantize(part, ggml_type, len(part), states.shape[1], states.dtype).t()
        for part in blocks.split(step)
    )
    return torch.cat(list(parts), dim=1)


def _mul_mat_id(blocks: Tensor, states: Tensor, ids: Tensor, ggml_type: int, n_out: int) -> Tensor:
    """Each of the states [tokens, n_in] times the experts [tokens, chosen] chosen for it: [tokens, chosen, n_out]."""
    out = states.new_empty(*ids.shape, n_out)
    for expert in ids.unique().tolist():
        token, place = (ids == expert).nonzero(as_tuple=True)
        out[token, place] = _mul_mat_vec(blocks[expert], states[token], ggml_type, n_out)
    return out


_IN_TORCH = SimpleNamespace(
    mul_mat_vec=_mul_mat_vec,
    mul_mat_id=_mul_mat_id,
    dequantize=_dequantize,
    get_rows=_get_rows,
    GEMV_TYPES=frozenset(dequant.GGML_BLOCK),
)
