"""Passes that leave blocks out, for the drafts of self-speculative decoding."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any

from torch import Tensor, nn

from layerlens.errors import OptionError
from layerlens.models.hooks import stream_argument


def indispensable(blocks: Sequence[nn.Module], kinds: Sequence[str]) -> set[int]:
    """The blocks, 0-based, that no pass can leave out: the first of each kind.

    The model takes the length of the text so far from the keys of the first block of a kind, and the form of what other
    blocks of a class return from what the first one returns.

    Args:
        blocks: of the model, in order.
        kinds: what each is: "full", "sliding", ...
    """
    firsts: dict[Any, int] = {}
    for index, (block, kind) in enumerate(zip(blocks, kinds, strict=True)):
        firsts.setdefault(kind, index)
        firsts.setdefault(type(block), index)
    return set(firsts.values())


@contextmanager
def skipping(blocks: Sequence[nn.Module], kinds: Sequence[str], skipped: Collection[int]) -> Iterator[None]:
    """While open, passes of this thread leave these blocks out: such a block hands on its input, computes nothing and
    keeps no keys.

    Hooks on a block that is left out still run, and see that it changed nothing.

    Args:
        blocks: of the model, in order.
        kinds: the kind of each block: "full", "sliding", ...
        skipped: numbers of blocks, 0-based; none of `indispensable`.

    Raises:
        OptionError: there is no such block, or no pass can leave it out.
    """
    kept = indispensable(blocks, kinds)
    for number in skipped:
        if type(number) is not int or number not in range(len(blocks)):
            raise OptionError(f"there is no block {number} to skip", f"give 0..{len(blocks) - 1}", given=number)
        if number in kept:
            raise OptionError(
                f"block {number} is the first of its kind and cannot be skipped", "leave it out", given=number
            )
    returned: dict[type, Any] = {}
    owner = get_ident()

    def remember(block: nn.Module, _args: Any, output: Any) -> None:
        if get_ident() == owner:
            returned[type(block)] = output

    def handing_on(block: nn.Module) -> Callable[..., Any]:
        own = block.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if get_ident() != owner:
                return own(*args, **kwargs)
            stream, like = stream_argument(args, kwargs), returned[type(block)]
            return stream if isinstance(like, Tensor) else type(like)((stream, *like[1:]))

        return forward

    with ExitStack() as stack:
        for number in sorted(kept) if skipped else ():
            stack.callback(blocks[number].register_forward_hook(remember).remove)
        for number in skipped:
            stack.callback(_restored(blocks[number]))
            blocks[number].forward = handing_on(blocks[number])
        yield


def _restored(block: nn.Module) -> Callable[[], None]:
    """Gives the block the forward that it has now."""
    own = vars(block).get("forward")

    def restore() -> None:
        if own is None:
            del block.forward
        else:
            block.forward = own

    return restore
