"""What a manifest says of how a trace is made. It needs a description of the model, and no model: an engine that runs
in other processes describes its own."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from layerlens.datasets import Dataset
from layerlens.decode.flops import decoding_flops
from layerlens.decode.identity import code_of
from layerlens.decode.modules import model_record
from layerlens.decode.prompts import TokenizedPrompt
from layerlens.decode.registry import strategy_record
from layerlens.decode.strategies import Strategy
from layerlens.errors import ModelError
from layerlens.lens import IDENTITY
from layerlens.models import Model
from layerlens.records import Manifest, new_manifest
from layerlens.records.manifest import digest
from layerlens.tracing.options import TraceOptions


def trace_manifest(
    described: Mapping[str, Any],
    hardware: Mapping[str, str],
    dataset: Dataset,
    batches: Sequence[Sequence[TokenizedPrompt]],
    options: TraceOptions,
    strategy: Strategy,
    chat_template: str | None,
    lens: Mapping[str, Any] | None = None,
    draft: Mapping[str, Any] | None = None,
) -> Manifest:
    """The manifest that a trace begins with.

    Args:
        described: the manifest's entry `model`, such as `described(model)`; it has `n_layers`.
        hardware: that of the machine on which the model is.
        dataset: where the prompts are from.
        batches: the prompts as they go through the model together.
        options: settled.
        strategy: what chooses the logits.
        chat_template: of the tokenizer; None where it has none.
        lens: the record of the transport through which layers are read; None for the logit lens.
        draft: the record of the skip policy by whose drafts tokens are generated; None where there are none.
    """
    drafts = {} if draft is None else {"draft": dict(draft)}
    template = chat_template if options.chat_template else None
    return new_manifest(
        seed=options.seed,
        model=dict(described),
        dataset={
            **dataset.record(),
            "prompts_sha256": digest("\0".join(prompt.text for batch in batches for prompt in batch)),
        },
        strategy=strategy_record(strategy, described["n_layers"]),
        strategy_code=code_of(type(strategy)),
        lens=dict(lens or IDENTITY.record()),
        mode=options.mode,
        options={name: value for name, value in asdict(options).items() if name not in ("mode", "seed")} | drafts,
        window=options.window,
        batches=[[prompt.prompt_id for prompt in batch] for batch in batches],
        padding="left" if options.mode == "generate" else "right",
        chat_template_sha256=digest(template) if template is not None else None,
        hardware=dict(hardware),
    )


def described(model: Model) -> dict[str, Any]:
    """What a manifest says of a model in this process."""
    return {
        **model_record(model),
        "layer_kinds": list(model.layer_kinds),
        "mlp_kinds": list(model.mlp_kinds),
        "multiply_adds": _multiply_adds(model),
    }


def _multiply_adds(model: Model) -> dict[str, int] | None:
    """Multiply-adds of the forward pass of a generated token and of one unembedding; None if unknown."""
    try:
        flops = decoding_flops(model.hf, window=1)
    except ModelError:
        return None
    return {"forward": flops.forward, "unembedding": flops.unembedding}
