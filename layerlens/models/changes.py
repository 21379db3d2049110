"""Records what a model's readings depend on, and finds what has changed since."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from torch import Tensor, nn

from layerlens.compat import children_of, hooks_of, hooks_of_all, tensors_of, times_written, written_forward
from layerlens.models.adapter import SCALARS
from layerlens.models.foundation import Foundation
from layerlens.models.model import Model, head_of
from layerlens.models.packed import is_plain, plain_tensors

_OURS = "layerlens.models.hooks"
_PLAIN = (bool, int, float)


def foundation_of(model: Model) -> Foundation:
    """What the readings of a model depend on, as it is now."""
    paths = {module: path for path, module in model.hf.named_modules()}
    block = paths[model.blocks[-1]]
    after = (*(module for module in model.unembed.tail if module in paths), model.head)
    copied = model.unembed.packed is not None or any(module not in paths for module in model.unembed.tail)
    ends = tuple(dict.fromkeys(paths[inner] for module in after for inner in module.modules()))
    around = tuple(dict.fromkeys(owner for path in (block, *ends) for owner in _owners(path) if owner not in ends))
    parts = tuple(paths[part.watched] for part in model.sublayers if part is not None)
    stack = block.rpartition(".")[0]
    where = stack, ends, around, parts, copied
    return Foundation(*where, *_facts(model, *where))


def changes(model: Model) -> tuple[list[str], list[str]]:
    """What has changed since the model was loaded, as phrases: changes that decide, and those for a pass to judge."""
    then = model.foundation
    if then is None:
        return [], []
    fixed, watched, numbers = _facts(model, then.stack, then.ends, then.around, then.parts, then.copied)
    return _differing(then.fixed, fixed), _differing(then.watched, watched) + _differing(then.numbers, numbers)


def note_numbers(model: Model) -> None:
    """Record the present numbers in place of those at load, because the readings are right with them."""
    then = model.foundation
    if then is not None:
        then.numbers.update(_facts(model, then.stack, then.ends, then.around, then.parts, then.copied)[2])


def in_training(root: nn.Module) -> bool:
    """Whether any module of the model is in training mode; three times as fast as with `modules()`."""
    waiting: list[nn.Module | None] = [root]
    while waiting:
        module = waiting.pop()
        if module is not None:
            if module.training:
                return True
            waiting.extend(children_of(module).values())
    return False


def _facts(
    model: Model, stack: str, ends: Sequence[str], around: Sequence[str], parts: Sequence[str], copied: bool
) -> tuple[dict[str, object], dict[str, object], dict[str, object]]:
    hf = model.hf
    fixed: dict[str, object] = {f"{stack} holds other blocks": _children(_at(hf, stack))}
    watched: dict[str, object] = {}
    numbers: dict[str, object] = {}
    for path in (*ends, *parts):
        module = _at(hf, path)
        fixed[f"{path} is another module"] = module, type(module)
    head = head_of(hf)
    fixed["the unembedding is another module"] = head
    for name in ("weight", "bias"):
        tensor = getattr(head, name, None)
        fixed[f"the unembedding has another {name}"] = _place(tensor) if is_plain(tensor) else type(tensor)
    for path in (*ends, *around):
        module = _at(hf, path)
        name = path or type(hf).__name__
        if module is None:
            continue
        watched[f"{name} has other hooks"] = _hooks(module)
        watched[f"{name} has another forward"] = written_forward(module.forward)
        watched[f"{name} holds other modules"] = _children(module)
        numbers[f"{name} has other numbers"] = {
            key: value for key, value in vars(module).items() if type(value) in _PLAIN and key != "training"
        }
        if path in ends:
            # copies that were made of them, in another form or on another device, do not follow them
            values = tuple(_version(tensor) for tensor in _tensors(module))
            (fixed if copied else numbers)[f"{name} has other values"] = values
    watched["torch has other hooks for all modules"] = hooks_of_all()
    config = hf.config.get_text_config(decoder=True)
    for key in (*SCALARS, "num_hidden_layers"):
        numbers[f"its config has another {key}"] = getattr(config, key, None)
    return fixed, watched, numbers


def _differing(then: dict[str, object], now: dict[str, object]) -> list[str]:
    return [phrase for phrase in {**then, **now} if then.get(phrase) != now.get(phrase)]


def _owners(path: str) -> Iterator[str]:
    """The paths of the modules around a module, the model itself ("") first."""
    names = path.split(".")
    return (".".join(names[:length]) for length in range(len(names)))


def _at(hf: nn.Module, path: str) -> nn.Module | None:
    module: Any = hf
    for name in path.split(".") if path else ():
        module = children_of(module).get(name) if isinstance(module, nn.Module) else None
    return module if isinstance(module, nn.Module) else None


def _children(module: nn.Module | None) -> tuple[nn.Module | None, ...]:
    return () if module is None else tuple(children_of(module).values())


def _hooks(module: nn.Module) -> tuple[object, ...]:
    """What else runs when the module is called, without what layerlens has added."""
    return tuple(hook for hook in hooks_of(module) if getattr(hook, "__module__", None) != _OURS)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain.from_iterable(plain_tensors(tensor) for tensor in tensors_of(module) if tensor is not None)


def _place(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr() if not tensor.is_meta else 0, tuple(tensor.shape), tensor.dtype, tensor.device


def _version(tensor: Tensor) -> tuple[object, ...]:
    """Where the values are stored, and how often they were changed in place (not counted in inference mode)."""
    return *_place(tensor), 0 if tensor.is_inference() else times_written(tensor)
