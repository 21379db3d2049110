"""Passes that leave blocks out, or their attention or MLP alone, for the drafts of self-speculative decoding."""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from layerlens.decode.speculative.skipset import SkipSet, refuse_no_such_blocks
from layerlens.errors import ModelError
from layerlens.models import Model
from layerlens.models.adapter import named_in
from layerlens.models.families import family_of
from layerlens.models.hooks import first_tensor, stream_argument


def indispensable(model: Model) -> set[int]:
    """The blocks, 0-based, that no pass can leave out: the first of each kind.

    The model takes the length of the text so far from the keys of the first block of a kind. The form of what a block,
    an attention module or an MLP returns is that of the first one of its class.
    """
    firsts: dict[Any, int] = {}
    parts = parts_of(model) or ([[]] * model.n_layers, [[]] * model.n_layers)
    for index, (block, kind) in enumerate(zip(model.blocks, model.layer_kinds, strict=True)):
        for key in (kind, type(block), *map(type, parts[0][index]), *map(type, parts[1][index])):
            firsts.setdefault(key, index)
    return set(firsts.values())


def parts_of(model: Model) -> tuple[list[list[nn.Module]], list[list[nn.Module]]] | None:
    """The attention modules and the MLPs of each block, where each can be left out alone; None where it cannot.

    A family is left out whose modules do more than to add to the stream, or do only a part of the work.
    """
    family = family_of(model.family, model.hf.config.get_text_config(decoder=True))
    names = (*family.attention, *family.mlp)
    known = all(part is not None for part in model.sublayers)
    if not known or any("." in name for name in names) or "fc2" in names:
        return None
    parts = tuple([named_in(block, names) for block in model.blocks] for names in (family.attention, family.mlp))
    return (parts[0], parts[1]) if all(map(all, parts)) else None


def splits(model: Model) -> bool:
    """Whether each block is attention, then MLP, and nothing else, so that `split` gives what the block does."""
    family = family_of(model.family, model.hf.config.get_text_config(decoder=True))
    return parts_of(model) is not None and not family.parallel and not family.adds_more


@contextmanager
def skipping(model: Model, skips: SkipSet) -> Iterator[None]:
    """While open, passes of this thread leave these blocks and parts out: they compute nothing and keep no keys.

    A block that is left out hands on its input; hooks on it still run, and see that it changed nothing.

    Args:
        model: from `load`.
        skips: none of the blocks that are `indispensable`.

    Raises:
        OptionError: there is no such block, or no pass can leave it out.
        ModelError: a block is left out in part, and the family's cannot be.
    """
    kept = indispensable(model)
    refuse_no_such_blocks(skips, model.n_layers, kept)
    silent: list[nn.Module] = []
    if not skips.is_of_blocks:
        parts = parts_of(model)
        if parts is None:
            raise ModelError(
                f"the blocks of {model.source} ({model.family}) can be left out as a whole only",
                "give a policy that skips whole blocks",
                given=model.source,
            )
        for modules, numbers in zip(parts, (skips.attention, skips.mlp), strict=True):
            silent += [module for number in sorted(numbers - skips.blocks) for module in modules[number]]
    returned: dict[type, Any] = {}
    owner = get_ident()

    def remember(module: nn.Module, _args: Any, output: Any) -> None:
        if get_ident() == owner:
            returned[type(module)] = output

    with ExitStack() as stack:
        for number in sorted(kept) if skips else ():
            first = model.blocks[number]
            for module in (first, *(one for one in first.modules() if type(one) in {type(part) for part in silent})):
                stack.callback(module.register_forward_hook(remember).remove)
        for number in sorted(skips.blocks):
            _replace(stack, model.blocks[number], owner, returned, lambda stream: stream)
        for module in silent:
            _replace(stack, module, owner, returned, torch.zeros_like)
        yield


@contextmanager
def split(
    model: Model, blocks: Collection[int], rewrite: Callable[[int, str, Tensor, Tensor], Tensor]
) -> Iterator[None]:
    """While open, each of these blocks runs in two halves, and each half hands on what `rewrite` makes of it.

    Args:
        model: one that `splits`.
        blocks: numbers of blocks, 0-based.
        rewrite: gets the block's number, "attention" or "mlp", the stream before that half and after it; returns the
            stream that is handed on.
    """
    parts = parts_of(model)
    assert parts is not None, "asked for by policies that have refused other families"
    by_name = dict(zip(("attention", "mlp"), parts, strict=True))
    returned: dict[type, Any] = {}
    owner = get_ident()
    with ExitStack() as stack:

        def silenced(number: int, name: str) -> ExitStack:
            silence = ExitStack()
            for module in by_name[name][number]:
                _replace(silence, module, owner, returned, torch.zeros_like)
            return silence

        def halves(number: int) -> Callable[..., Any]:
            own = model.blocks[number].forward

            def forward(*args: Any, **kwargs: Any) -> Any:
                if get_ident() != owner:
                    return own(*args, **kwargs)
                output: Any = stream_argument(args, kwargs)
                for name, other in (("attention", "mlp"), ("mlp", "attention")):
                    before = first_tensor(output)
                    given = ((before, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": before})
                    with silenced(number, other):
                        output = own(*given[0], **given[1])
                    states = rewrite(number, name, before, first_tensor(output))
                    output = type(output)((states, *output[1:])) if isinstance(output, tuple | list) else states
                return output

            return forward

        def remember(module: nn.Module, _args: Any, output: Any) -> None:
            if get_ident() == owner:
                returned[type(module)] = output

        for of_name in parts:
            for module in {type(one): one for of_block in reversed(of_name) for one in of_block}.values():
                stack.callback(module.register_forward_hook(remember).remove)
        for number in blocks:
            forward = halves(number)
            _set(stack, model.blocks[number], forward)
        yield


def _replace(
    stack: ExitStack, module: nn.Module, owner: int, returned: dict[type, Any], instead: Callable[[Tensor], Tensor]
) -> None:
    """Until the stack is closed, the module returns this of its input, in the form that others of its class do."""
    own = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if get_ident() != owner:
            return own(*args, **kwargs)
        stream, like = instead(stream_argument(args, kwargs)), returned.get(type(module))
        return type(like)((stream, *like[1:])) if isinstance(like, tuple | list) else stream

    _set(stack, module, forward)


def _set(stack: ExitStack, module: nn.Module, forward: Callable[..., Any]) -> None:
    """Give the module another forward until the stack is closed."""
    own = vars(module)  # some libraries' modules set attributes on another module
    before = own.get("forward")

    def restore() -> None:
        if before is None:
            del own["forward"]
        else:
            own["forward"] = before

    stack.callback(restore)
    own["forward"] = forward
