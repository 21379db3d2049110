"""The only module that registers hooks. Every hook belongs to a context manager: it is removed when the context is
left, and it ignores the passes of other threads."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from threading import get_ident
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from layerlens.models.packed import is_plain


@dataclass(frozen=True)
class SubLayers:
    """The module at which the parts of one block can be observed.

    Attributes:
        watched: the module whose input is the stream between attention and MLP or, in a parallel block, the
            attention module, whose output is what attention adds.
        parallel: attention and MLP both read the block's input, and their outputs are added to it together.
    """

    watched: nn.Module
    parallel: bool


OnBlock = Callable[[int, Tensor, Tensor | None, Tensor], None]


@contextmanager
def watch_blocks(
    blocks: Sequence[nn.Module], sublayers: Sequence[SubLayers | None], on_block: OnBlock
) -> Iterator[None]:
    """Call `on_block(index, h_in, part, h_out)` after each block of each forward pass.

    Args:
        blocks: the model's blocks, in order.
        sublayers: for each block the place where its parts can be observed, or None.
        on_block: gets the block's 0-based index, the streams [batch, seq, d_model] that entered and left it, and
            the stream between attention and MLP (parallel blocks: the attention's output), None where unobserved.
    """
    parts: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for index, (block, sublayer) in enumerate(zip(blocks, sublayers, strict=True)):
            if sublayer is not None:
                stack.callback(_keep_part(sublayer, index, parts).remove)
            after = _of_this_thread(_after(index, parts, on_block))
            stack.callback(block.register_forward_hook(after, with_kwargs=True).remove)
        yield


@contextmanager
def silenced(modules: Sequence[nn.Module], row: int | None = None, n_rows: int = 1) -> Iterator[None]:
    """While open, the modules' outputs are zeros, for one of `n_rows` equal parts of the batch or for all of it."""

    def zeros(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        silent = first_tensor(output).clone()
        # some blocks flatten batch and sequence on their way to the MLP
        (silent if row is None else silent.view(n_rows, -1)[row]).zero_()
        return (silent, *output[1:]) if isinstance(output, tuple) else silent

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(_of_this_thread(zeros)).remove)
        yield


@contextmanager
def replaced(block: nn.Module, states: Tensor) -> Iterator[None]:
    """While open, the block hands on these states [batch, seq, d_model] instead of what it computed."""

    def instead(_block: nn.Module, _inputs: Any, output: Any) -> Any:
        return type(output)([states.clone(), *output[1:]]) if isinstance(output, tuple | list) else states.clone()

    handle = block.register_forward_hook(_of_this_thread(instead))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def outputs_of(modules: Iterable[nn.Module], on_output: Callable[[nn.Module, Tensor], None]) -> Iterator[None]:
    """Call `on_output(module, output)` with the first tensor that each of these modules returns, at each call."""

    def hook(module: nn.Module, _inputs: Any, output: Any) -> None:
        on_output(module, first_tensor(output))

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(_of_this_thread(hook)).remove)
        yield


@contextmanager
def timed_modules(
    modules: Iterable[nn.Module], device: torch.device, on_seconds: Callable[[float], None]
) -> Iterator[None]:
    """Call `on_seconds` with the time that each call of one of these modules takes; CUDA is waited for."""
    began: list[float] = []

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return perf_counter()

    def before(*_: Any) -> None:
        began.append(now())

    def after(*_: Any) -> None:
        on_seconds(now() - began.pop())

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_pre_hook(_of_this_thread(before)).remove)
            stack.callback(module.register_forward_hook(_of_this_thread(after)).remove)
        yield


@contextmanager
def rewritten(blocks: Sequence[nn.Module], rewrite: Callable[[int, Tensor, Tensor], Tensor]) -> Iterator[None]:
    """While open, each block hands on `rewrite(index, h_in, h_out)` in place of h_out."""

    def hook_of(index: int) -> Callable[..., Any]:
        def hook(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            states = rewrite(index, stream_argument(args, kwargs), first_tensor(output))
            return type(output)([states, *output[1:]]) if isinstance(output, tuple | list) else states

        return hook

    with ExitStack() as stack:
        for index, block in enumerate(blocks):
            hook = _of_this_thread(hook_of(index))
            stack.callback(block.register_forward_hook(hook, with_kwargs=True).remove)
        yield


class Call(NamedTuple):
    """One call of a module: the first tensor that it was given and the first that it returned."""

    module: nn.Module
    given: Tensor | None
    returned: Tensor | None


@contextmanager
def calls_in(root: nn.Module) -> Iterator[list[Call]]:
    """While open, lists the calls of all modules of `root` in the order in which they return."""
    calls: list[Call] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        outputs = output if isinstance(output, tuple | list) else (output,)
        calls.append(Call(module, _given(args, kwargs), _first(outputs)))

    with ExitStack() as stack:
        for module in root.modules():
            stack.callback(module.register_forward_hook(_of_this_thread(keep), with_kwargs=True).remove)
        yield calls


OnLogits = Callable[[dict[int, Tensor], Tensor], Tensor | None]
IsOn = Callable[[], bool]


@contextmanager
def replacing_logits(
    root: nn.Module,
    head: nn.Module,
    blocks: Sequence[nn.Module],
    layers: Sequence[int],
    on_logits: OnLogits,
    is_on: IsOn = lambda: True,
    n_read: Callable[[], int] = lambda: 1,
) -> Iterator[None]:
    """Let `on_logits` choose the logits of the last positions of each forward pass of `root`.

    Args:
        root: the whole model, whose output has `logits`.
        head: its unembedding module.
        blocks: its blocks, in order.
        layers: the layers whose states [rows, d_model] are handed over, row by row of the batch: 1..L, or 0 for the
            embeddings. Without any, the model computes its own logits, and these are handed over.
        on_logits: gets the states by layer and the model's own logits [rows, vocab]; returns logits that replace them,
            or None. Where states are handed over and the head is plain, the head is not run, and the logits have no
            rows.
        is_on: where this returns false, as for passes of other threads, a pass is left as it is.
        n_read: how many positions, counted back from the last one of the pass.
    """
    kept: dict[int, Tensor] = {}

    def keep_input(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if is_on():
            kept[0] = stream_argument(args, kwargs)

    def keep_output(layer: int) -> Callable[..., None]:
        def hook(_block: nn.Module, _args: Any, output: Any) -> None:
            if is_on():
                kept[layer] = first_tensor(output)

        return hook

    # kernels for packed weights can crash the process if they are given no row
    may_be_empty = is_plain(getattr(head, "weight", None))

    def few_rows(_head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if not is_on():
            return args
        return (args[0][:, slice(0, 0) if may_be_empty else slice(-n_read(), None)], *args[1:])

    # norm, unembedding and choice are kept out of what torch.compile compiles
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def answer(_root: nn.Module, _args: Any, output: Any) -> Any:
        if not is_on():
            return output
        n, own = n_read(), output.logits
        if n == 1:
            states = {layer: stream.select(1, -1) for layer, stream in kept.items()}  # all at once: half the time
        else:
            states = {layer: stream[:, -n:].flatten(0, 1) for layer, stream in kept.items()}
        kept.clear()
        logits = on_logits(states, own.flatten(0, 1) if own.shape[1] == 0 else own[:, -n:].flatten(0, 1))
        if logits is not None:
            output.logits = logits.unflatten(0, (-1, n))
        return output

    with ExitStack() as stack:
        if layers:
            stack.callback(head.register_forward_pre_hook(few_rows).remove)
            for layer in layers:
                if layer == 0:
                    stack.callback(blocks[0].register_forward_pre_hook(keep_input, with_kwargs=True).remove)
                else:
                    stack.callback(blocks[layer - 1].register_forward_hook(keep_output(layer)).remove)
        stack.callback(root.register_forward_hook(answer).remove)
        yield


def _of_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook, changed to do nothing where another thread runs the module."""
    owner = get_ident()

    @wraps(hook)
    def ours(*given: Any) -> Any:
        return hook(*given) if torch.compiler.is_compiling() or get_ident() == owner else None

    return ours


def first_tensor(output: Any) -> Tensor:
    """The stream in the output of a module: the tensor itself, or the first entry of a tuple or list."""
    tensor: Tensor = output[0] if isinstance(output, tuple | list) else output
    return tensor


def _after(index: int, parts: dict[int, Tensor], on_block: OnBlock) -> Callable[..., None]:
    def hook(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        h_in, part = stream_argument(args, kwargs), parts.pop(index, None)
        if part is not None and part.numel() == h_in.numel():
            part = part.reshape(h_in.shape)  # some blocks flatten batch and sequence on their way to the MLP
        on_block(index, h_in, part, first_tensor(output))

    return hook


def _keep_part(sublayer: SubLayers, index: int, parts: dict[int, Tensor]) -> Any:
    def keep_output(_module: nn.Module, _args: Any, output: Any) -> None:
        parts[index] = first_tensor(output)

    def keep_input(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        parts[index] = stream_argument(args, kwargs)

    if sublayer.parallel:
        return sublayer.watched.register_forward_hook(_of_this_thread(keep_output))
    return sublayer.watched.register_forward_pre_hook(_of_this_thread(keep_input), with_kwargs=True)


def stream_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    stream = _given(args, kwargs)
    assert stream is not None
    return stream


def _given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The stream in the input of a module: by its name in most modules, else the first tensor."""
    return _first((*args[:1], kwargs.get("hidden_states"), *args[1:], *kwargs.values()))


def _first(values: Iterable[Any]) -> Tensor | None:
    return next((value for value in values if isinstance(value, Tensor)), None)
