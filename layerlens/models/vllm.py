"""A model that vLLM runs: its config and its tokenizer are here, its weights are in vLLM's engine."""

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from layerlens.errors import ModelError, OptionError
from layerlens.models import machine, sizes
from layerlens.models.adapter import adapt
from layerlens.models.backend import Connection
from layerlens.models.checkpoints import config_and_loader, tokenizer_of
from layerlens.models.model import Model
from layerlens.models.safetensors_header import entries
from layerlens.models.vllm_versions import installed, refuse_without_vllm
from layerlens.paths import expanded
from layerlens.sources import hub

NAME = "vllm"
_OURS = ("model", "tokenizer", "additional_config", "dtype", "revision", "trust_remote_code", "hf_overrides")

_HARMLESS = (
    *("tensor_parallel_size", "data_parallel_size", "distributed_executor_backend", "max_num_seqs", "seed"),
    *("max_num_batched_tokens", "gpu_memory_utilization", "kv_cache_memory_bytes", "enforce_eager", "max_model_len"),
    *("enable_prefix_caching", "enable_chunked_prefill", "disable_log_stats", "download_dir", "block_size"),
    *("num_gpu_blocks_override", "compilation_config", "swap_space", "cpu_offload_gb"),
)
"""Arguments of `LLM` that may differ between the sessions of a run."""


@dataclass(frozen=True, eq=False)
class Vllm(Connection):
    """vLLM as a backend.

    Attributes:
        arguments: of vLLM's `LLM`, without those about layerlens.
        running: the engine, once it has been started.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    running: list[Any] = field(default_factory=list)

    def refuse_absent(self) -> None:
        """OptionError where vLLM is not installed, or in a version that the plugin does not know."""
        refuse_without_vllm()

    @property
    def record(self) -> dict[str, Any]:
        """The arguments that can change numbers: all but those that say how much is done where and at once."""
        given = {name: value for name, value in self.arguments.items() if name not in (*_OURS, *_HARMLESS)}
        return {"engine_options": given}

    @property
    def hardware(self) -> dict[str, Any]:
        """The hardware of this machine, and the engine with its version and arguments."""
        place = "cuda:0" if torch.cuda.is_available() else "cpu"
        given = {name: value for name, value in self.arguments.items() if name != "model"}
        return machine.hardware([place]) | {"engine": NAME, "engine_version": installed(), "engine_options": given}


def loaded(
    source: str, dtype: torch.dtype | None, revision: str | None, trust: bool, options: Mapping[str, Any]
) -> Model:
    """The model in the shape of `Model`, whose parameters have shapes and no numbers. No engine is started yet.

    Args:
        source: a folder or a hub id.
        dtype: the type to load it in; None for the type that the checkpoint names.
        revision: branch, tag or commit of a hub id.
        trust: run code that comes with the checkpoint.
        options: further arguments of vLLM's `LLM`.

    Raises:
        ModelError: its config or its tokenizer cannot be read.
        OptionError: an option is layerlens' own to give.
    """
    if not isinstance(options, Mapping):
        what = "is not a mapping of arguments"
        raise OptionError.about("engine_options", options, what, 'give {"tensor_parallel_size": 8}')
    for name, value in options.items():
        if name in _OURS:
            what = f"gives {name}, which layerlens gives to vLLM itself"
            raise OptionError.about("engine_options", {name: value}, what, "leave it out")
    config, loader, safety = config_and_loader(source, {"trust_remote_code": trust, "revision": revision or "main"})
    if loader is None:
        raise ModelError(
            f"transformers knows no class for {source}, by which its layers could be counted",
            "give another model, or `layerlens serve` it",
            given=source,
        )
    tokenizer = tokenizer_of(source, safety)
    kind = dtype or sizes.dtype_of(config) or torch.float32
    with torch.device("meta"):
        hf = loader.from_config(config, dtype=torch.bfloat16, trust_remote_code=trust)  # which all layers can follow
    with contextlib.suppress(OSError):  # it has none, and transformers' default stays
        hf.generation_config = GenerationConfig.from_pretrained(source, **{**safety, "trust_remote_code": None})
    arguments = {"model": source, "dtype": str(kind).removeprefix("torch."), "trust_remote_code": trust, **options}
    if revision is not None:
        arguments["revision"] = revision
    folder = expanded(source)
    commit = None if folder.is_dir() else hub.commit_of(source, "config.json", revision or "main")
    backend = Vllm(
        NAME,
        is_here=False,
        home="layerlens.engines.vllm.backend",
        identity=commit or _identity(folder),
        arguments=arguments,
    )
    model = replace(adapt(hf.eval(), tokenizer, source, commit), backend=backend)
    hf.to(kind)
    return model


def _identity(folder: Path) -> str:
    """A digest of some bytes of every weight file: 16 pieces evenly spaced over each tensor of safetensors, and 4,096
    over each file of another kind."""
    told = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            for name, entry in sorted(entries(path).items()):
                told.update(f"{name}{entry.dtype}{list(entry.shape)}".encode())
                for piece in range(16):
                    file.seek(entry.begin + (entry.end - entry.begin) * piece // 16)
                    told.update(file.read(min(4, entry.end - entry.begin)))
    for path in sorted([*folder.glob("*.bin"), *folder.glob("*.pt")]):
        size = path.stat().st_size
        with path.open("rb") as file:
            for piece in range(4096):
                file.seek(size * piece // 4096)
                told.update(file.read(4))
    return told.hexdigest()
