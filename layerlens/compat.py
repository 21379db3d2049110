"""Names of other packages that layerlens uses although they are not documented, all in one place.

A new version may remove such a name or change its meaning. `tests/test_compat.py` has a test for each name, and
`pyproject.toml` bounds the versions. The names were read from torch 2.13, transformers 5.18 to 5.23, accelerate 1.15,
bitsandbytes 0.50, gguf 0.16 to 0.19, llvmlite 0.45 to 0.50, nnsight 0.8.1, TransformerLens 4.3, vLLM 0.32 and
inspect-ai 0.3.285.
"""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import signature
from itertools import chain
from pathlib import Path
from typing import Any, TypeGuard

import torch
from packaging.version import Version
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

# --- torch: tensors and products ---

COMPILED_ATTRIBUTE = "_orig_mod"
"""Where what torch.compile makes of a module keeps that module."""
SHAPES_ONLY_LOG = "torch._subclasses.fake_tensor"
"""The logger that says why a pass in `shapes_only` failed."""

# bound here, because every product calls them
_n_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_transform: Callable[[], object] = torch._C._functorch.peek_interpreter_stack


def is_watched() -> bool:
    """Whether a mode or a transform such as vmap watches operations; it would miss those that are not torch's."""
    return _n_modes() != 0 or _transform() is not None


def is_wrapper(tensor: object) -> TypeGuard[Any]:
    """Whether this is a tensor that stands for others, such as blocks and their scales."""
    return is_traceable_wrapper_subclass(tensor)


def times_written(tensor: Tensor) -> int:
    """How often the values of a tensor were changed in place; not counted in inference mode."""
    return tensor._version


def shapes_only() -> AbstractContextManager[Any]:
    """While open, operations compute shapes and types but no numbers, even for tensors that have numbers."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def onednn_multiplies(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies float32 or bfloat16 here; for bfloat16 the processor needs instructions of its own."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def has_fast_bfloat16() -> bool:
    """Whether oneDNN multiplies bfloat16 with instructions made for it: AVX512-BF16 or AMX."""
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return fast and onednn_multiplies(torch.bfloat16)


def onednn_product(states: Tensor, weight: Tensor) -> Tensor:
    """states [rows, d] times weight [tokens, d] transposed, by oneDNN: [rows, tokens]; both on a CPU, of one type."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, None, "none", [], "")
    return product


def onednn_layout(weight: Tensor, rows: int) -> Tensor:
    """The weight [tokens, d] as oneDNN lays it out for itself to multiply so many rows with."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
    return packed


# --- torch: modules ---


def children_of(module: nn.Module) -> Mapping[str, nn.Module | None]:
    """The modules that a module holds, by name; `named_children` leaves out None and repeated modules."""
    return module._modules


def tensors_of(module: nn.Module) -> Iterator[Tensor | None]:
    """The parameters and buffers that a module itself holds, repeated ones each time."""
    return chain(module._parameters.values(), module._buffers.values())


def hooks_of(module: nn.Module) -> tuple[Callable[..., Any], ...]:
    """What else runs when a module is called: before its forward, and after it."""
    return (*module._forward_pre_hooks.values(), *module._forward_hooks.values())


def hooks_of_all() -> tuple[Callable[..., Any], ...]:
    """What runs whenever any module is called."""
    everywhere = nn.modules.module
    return (*everywhere._global_forward_pre_hooks.values(), *everywhere._global_forward_hooks.values())


def written_forward(forward: Any) -> Any:
    """The function that torch.compile was given, if it made this function; else this function."""
    return getattr(forward, "_torchdynamo_orig_callable", forward)


def is_compiled_in_place(module: nn.Module) -> bool:
    """Whether `module.compile()` was called."""
    return getattr(module, "_compiled_call_impl", None) is not None


# --- vLLM ---


@contextmanager
def left_in_ranks(processor: Any) -> Iterator[None]:
    """While open, vLLM's LogitsProcessor gives the logits of this rank's part of the vocabulary and gathers nothing."""
    processor._gather_logits = lambda logits: logits
    try:
        yield
    finally:
        del processor._gather_logits


# --- transformers ---


def is_compiled_by_generate(hf: nn.Module) -> bool:
    """Whether the model keeps what `generate` compiled by itself."""
    return "_compiled_call" in vars(hf)


def can_grow_a_cache(hf: Any) -> bool:
    """Whether the model's class takes a DynamicCache."""
    return bool(hf._supports_default_dynamic_cache())


def can_fill_a_static_cache(hf: Any) -> bool:
    """Whether the model runs with a StaticCache, whose places are filled one after the other."""
    from transformers.masking_utils import create_chunked_causal_mask

    chunked = "chunked_attention" in (getattr(hf.config.get_text_config(decoder=True), "layer_types", None) or ())
    if chunked and "block_sequence_ids" not in signature(create_chunked_causal_mask).parameters:
        return False  # transformers before 5.20 makes no mask for it
    return bool(hf._can_compile_fullgraph)


def windows_rewind() -> bool:
    """Whether the cache of a window can be read on several times before tokens are taken out of it; transformers 5.17
    hands out more states than its mask is for."""
    from transformers import __version__

    return Version(__version__) >= Version("5.18")


def decoding_fast(hf: Any) -> AbstractContextManager[Any]:
    """While open, experts are computed as `generate` computes them after the prompt."""
    optimized: Callable[[], AbstractContextManager[Any]] = getattr(hf, "_optimize_model_for_decode", nullcontext)
    return optimized()


def processors_of(hf: Any, config: Any, prompt: Sequence[int], device: torch.device) -> Any:
    """The logits processors that `generate` would run with a generation config; the config is changed.

    Args:
        hf: the model.
        config: a GenerationConfig of its own, with `max_length`.
        prompt: the token ids of the prompt.
        device: of the model.
    """
    hf._prepare_special_tokens(config, device=device)
    return hf._get_logits_processor(
        generation_config=config,
        input_ids_seq_length=len(prompt),
        encoder_input_ids=torch.tensor([list(prompt)], device=device),
        device=device,
    )


def chat_environment(template: str) -> Any:
    """The environment of jinja in which transformers renders a chat template, with the tags that it adds.

    Raises:
        jinja2.TemplateError: it cannot be parsed.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _compile_jinja_template(template).environment


def built_from(kind: Any, config: Any, **arguments: Any) -> Any:
    """A model with random weights, of a class of models or one of transformers' Auto classes."""
    build = getattr(kind, "from_config", None) or kind._from_config
    return build(config, **arguments)


def attention_of(config: Any) -> str | None:
    """How the model with this config computes attention: "sdpa", "eager", ..."""
    name: str | None = getattr(config, "_attn_implementation", None)
    return name


def told_by_config(config: Any) -> dict[str, Any]:
    """The entries of a config, except where it was read from and what wrote it."""
    entries: dict[str, Any] = config.to_dict()
    for name in ("_name_or_path", "transformers_version"):
        entries.pop(name, None)
    return entries


def gguf_tensors(path: str) -> list[tuple[Sequence[int], int]]:
    """Shape and type of each tensor of a GGUF file, also of types that transformers cannot leave packed."""
    from transformers.integrations.gguf import reader

    blob = reader._mapped(path)
    _, n_tensors, position = reader._read_metadata(blob, path)
    entries, _ = reader._read_tensor_table(blob, n_tensors, position)
    return [(shape, kind) for _, shape, kind, _ in entries]


def gguf_reader() -> type[Any]:
    """gguf's reader of a file, changed to read arrays as a whole: a vocabulary takes a tenth of the time.

    The texts of an array are bytes, in place of arrays of bytes.
    """
    import gguf
    import numpy as np

    kinds, text_length = gguf.GGUFValueType, struct.Struct("=Q").unpack_from

    class Chooser(gguf.GGUFReader):
        @property
        def data(self) -> Any:
            return self._whole

        @data.setter
        def data(self, mapped: Any) -> None:
            self._whole = np.asarray(mapped)  # a memory map is slow at slices

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
            if raw_type == kinds.ARRAY and self.byte_order == "I":
                kind, n = struct.unpack_from("=IQ", self.data, orig_offs)
                begin, dtype = orig_offs + 12, self.gguf_scalar_to_np.get(kind)
                parts: list[Any] = []
                if kind == kinds.STRING:
                    everything, end = memoryview(self.data), begin
                    for _ in range(n):
                        text = end + 8
                        end = text + text_length(everything, end)[0]
                        parts.append(bytes(everything[text:end]))
                    return end - orig_offs, parts, list(range(n)), [kinds.ARRAY, kinds.STRING]
                if dtype is not None:
                    values = np.frombuffer(self.data, dtype, n, begin)
                    return 12 + values.nbytes, list(values.reshape(-1, 1)), list(range(n)), [kinds.ARRAY, kinds(kind)]
            return super()._get_field_parts(orig_offs, raw_type)

    return Chooser


def set_gguf_kernel(functions: Any) -> None:
    """Let these functions take the place of transformers' compiled kernel for packed GGUF weights, in this process."""
    from transformers.integrations.gguf import kernels

    kernels._gguf_kernel = kernels.GgufKernel(functions)  # type: ignore[assignment]


# --- accelerate, bitsandbytes, llvmlite, nnsight, TransformerLens ---

BITSANDBYTES_LOG = "bitsandbytes.autograd._functions"
"""The logger of its products."""


def mover_of(module: nn.Module) -> Any:
    """accelerate's hook that moves the weights and states of a module between devices, or None."""
    return vars(module).get("_hf_hook")


def give_llvmlite_attributes() -> None:
    """Let llvmlite's library say that it has no attributes of its own.

    It makes a function of any name that is asked for, `__dict__` too. vLLM looks through the attributes of everything
    that was imported when it starts on a CPU, and fails at that function.
    """
    from llvmlite.binding import ffi

    ffi.lib._fntab["__dict__"] = {}


def module_in(language_model: Any) -> Any:
    """The transformers model inside of nnsight's."""
    return language_model._module


def has_edits(envoy: Any) -> bool:
    """Whether nnsight changes values here in each of its traces."""
    return bool(getattr(envoy, "_edits", None))


def has_processed_weights(bridge: Any) -> bool:
    """Whether TransformerLens folded or centred the weights of a TransformerBridge."""
    return bool(getattr(bridge, "_weights_processed", False))


# --- inspect ---


def inspect_refusal() -> type[Exception]:
    """The error that inspect prints as its sentence alone, without a traceback."""
    from inspect_ai._util.error import PrerequisiteError

    return PrerequisiteError


def inspect_item() -> tuple[str, int] | None:
    """The id of the sample that is being answered, and its epoch; None outside a task."""
    from inspect_ai.solver._task_state import sample_state

    state = sample_state()
    return None if state is None else (str(state.sample_id), int(state.epoch))


def inspect_buffers(logs: Path) -> list[Path]:
    """Databases of what inspect has not written into logs of a folder yet; names end with the process and .db."""
    from inspect_ai._util.file import filesystem
    from inspect_ai.log._recorders.buffer.database import location_dir_and_file, resolve_db_dir

    name, _ = location_dir_and_file(filesystem(str(logs)).path_as_uri(str(logs / "any.eval")))
    return sorted((resolve_db_dir() / name).glob("*.db"))
