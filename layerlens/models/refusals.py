"""Refusals of things that cannot be loaded as a model, with the true reason."""

from collections.abc import Collection
from typing import Any, NoReturn

from torch import nn
from transformers import PreTrainedModel

from layerlens.compat import COMPILED_ATTRIBUTE, children_of
from layerlens.errors import ModelError, OptionError
from layerlens.models import placement
from layerlens.models.compiled import is_compiled


def refuse_no_model(given: object) -> NoReturn:
    """OptionError for an object that is not a model, or is a wrapper around one."""
    name = type(given).__name__
    if any(kind.__module__.partition(".")[0] == "peft" for kind in type(given).__mro__):
        raise OptionError(
            f"a {name} is peft's wrapper around a model",
            "give the model with its adapters merged (model.merge_and_unload()), or the model inside it that "
            "carries them (model.get_base_model())",
            option="model",
            given=name,
        )
    inner, path, compiled = given, "model", False
    while not isinstance(inner, PreTrainedModel) and (attribute := _inside(inner)) is not None:
        compiled |= attribute == COMPILED_ATTRIBUTE
        inner, path = getattr(inner, attribute), f"{path}.{attribute}"
    if isinstance(inner, PreTrainedModel):
        why = " by torch.compile, in whose code hooks do not run" if compiled else ""
        raise OptionError(
            f"this {name} is a wrapper around a {type(inner).__name__}{why}",
            f"give that ({path})",
            option="model",
            given=name,
        )
    raise OptionError(
        f"an object of type {name} is not a model",
        "give a hub id, a path, or a model of transformers, TransformerLens (a TransformerBridge) or nnsight",
        option="model",
        given=name,
    )


def _inside(wrapper: object) -> str | None:
    """The attribute in which a wrapper keeps what it wraps."""
    modules = children_of(wrapper) if isinstance(wrapper, nn.Module) else {}
    return next((name for name in (COMPILED_ATTRIBUTE, "module") if modules.get(name) is not None), None)


def unreadable_head(head: object, source: str) -> ModelError:
    """The error for an unembedding without a weight that can be read."""
    kind = type(head)
    if ".quantized." in f"{kind.__module__}.":
        what, advice = "is quantised by torch, which packs its weight away", "leave it out of the quantisation"
    else:
        what = "has no weight of its own"
        advice = "give the model an unembedding with one, such as a torch.nn.Linear"
    problem = f"{source} cannot be traced: its unembedding ({kind.__module__}.{kind.__name__}) {what}"
    return ModelError(problem, advice, given=f"{kind.__module__}.{kind.__name__}")


def refuse_unobservable(hf: nn.Module, source: str) -> None:
    """ModelError for a compiled model: hooks do not run in code that was compiled without them."""
    if is_compiled(hf):
        raise ModelError(
            f"{source} is compiled, and hooks do not run in compiled code",
            "load it without torch.compile",
            given=source,
        )


def refuse_without_values(hf: nn.Module, source: str) -> None:
    """ModelError for a model on the meta device, which has shapes and no weights."""
    if placement.is_spread(hf):
        return  # offloaded weights are on meta until their turn
    empty = [name for name, parameter in hf.named_parameters() if parameter.is_meta]
    if empty:
        raise ModelError(
            f"{source} has no values: {len(empty)} of its weights ({empty[0]} ...) are on the meta device",
            "load it with its weights, by from_pretrained",
            given=source,
        )


def refuse_dropped_weights(
    hf: PreTrainedModel, source: str, *, missing: Collection[str], left_out: Collection[str]
) -> None:
    """ModelError where a checkpoint and the class that loads it do not hold the same weights of the language model.

    Args:
        hf: the loaded model.
        source: what it is called in messages.
        missing: weights of the class that the checkpoint lacks.
        left_out: weights of the checkpoint that the class does not take.
    """
    if missing:
        raise ModelError(
            f"{source} lacks {len(missing)} of its weights ({_some(missing)}), which would be random",
            "give a complete checkpoint",
            given=source,
        )
    needed = [name for name in left_out if _acts(hf, name)]
    if needed:
        raise ModelError(
            f"{source} holds {len(needed)} weights that {type(hf).__name__} does not take ({_some(needed)}), and "
            "without them it is another model",
            "check its config.json, or use the transformers that it was made with",
            given=source,
        )


def _acts(hf: PreTrainedModel, name: str) -> bool:
    """Whether a weight that was left out would have changed the states or logits.

    It would if it belongs to a module that the model has, or to a block. Whole towers for pictures or sound, and heads
    for further tokens, are not run. The contents of a buffer are computed again.
    """
    if name.endswith("masked_bias") or name in {buffer for buffer, _ in hf.named_buffers()}:
        return False
    path = name.rpartition(".")[0]
    stacks = [owner for owner, module in hf.named_modules() if isinstance(module, nn.ModuleList)]
    modules: Any = dict(hf.named_modules())
    return (path in modules and path != "") or any(name.startswith(f"{stack}.") for stack in stacks if stack)


def _some(names: Collection[str]) -> str:
    first = sorted(names)[:2]
    return ", ".join(first) + (" ..." if len(names) > len(first) else "")
