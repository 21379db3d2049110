"""The rules that choose a layer from the entropies of a token."""

from collections.abc import Callable
from typing import Any

import numpy as np

from layerlens.analysis.sample import Bools
from layerlens.analysis.uncertainty import Floats
from layerlens.errors import OptionError

Ints = np.ndarray[Any, np.dtype[np.int64]]

WINDOW = 10


def algorithm_layers(entropy: Floats, window: int | None = None) -> Ints:
    """The layer that Algorithm 1 walks back to, 1..L, [...] from entropies [..., L]; ties and NaN end the walk.

    Raises:
        OptionError: the window is not in 1..L; None means L.
    """
    back = _falls_back(entropy, window)
    layers: Ints = entropy.shape[-1] - _leading(back)
    return layers


def theorem_layers(entropy: Floats, window: int | None = None) -> Ints:
    """Theorem 1's V-hat, 1..L-1, [...] from entropies [..., L]: the walk of Algorithm 1 begun at L-1.

    Raises:
        OptionError: the window is not in 2..L; None means L. A window of one holds no layer before L.
    """
    back = _falls_back(entropy, window)
    if not back.shape[-1]:
        raise OptionError(
            "Theorem 1 chooses a layer before the last, and a window of 1 holds none",
            "choose 2 or more",
            option="window",
            given=window,
        )
    layers: Ints = entropy.shape[-1] - 1 - _leading(back[..., 1:])
    return layers


def argmin_layers(entropy: Floats, window: int | None = None) -> Ints:
    """The layer of the least entropy in the window, the latest of equals, 1..L, [...] from [..., L].

    Raises:
        OptionError: the window is not in 1..L; None means L.
    """
    first = entropy.shape[-1] - candidates(entropy, window)
    latest_first = entropy[..., first:][..., ::-1]
    return np.asarray(entropy.shape[-1] - np.argmin(latest_first, axis=-1), dtype=np.int64)


def last_layers(entropy: Floats, window: int | None = None) -> Ints:
    """L for every token, [...] from entropies [..., L]; OptionError where the window is not in 1..L."""
    candidates(entropy, window)
    return np.full(entropy.shape[:-1], entropy.shape[-1], dtype=np.int64)


RULES: dict[str, Callable[[Floats, int | None], Ints]] = {
    "last": last_layers,
    "algorithm": algorithm_layers,
    "theorem": theorem_layers,
    "argmin": argmin_layers,
}


def candidates(entropy: Floats, window: int | None) -> int:
    """How many layers a rule chooses from, 1..L; OptionError where the window is not in 1..L, None means L."""
    n_layers = entropy.shape[-1]
    if window is not None and not 1 <= window <= n_layers:
        raise OptionError(
            f"a window of {window} does not fit {n_layers} layers",
            f"choose 1 to {n_layers}",
            option="window",
            given=window,
        )
    return n_layers if window is None else window


def _falls_back(entropy: Floats, window: int | None) -> Bools:
    """Whether H(l-1) < H(l), [..., K-1], for l = L, L-1, ... in the window."""
    below = entropy[..., :-1] < entropy[..., 1:]
    return np.asarray(below[..., ::-1][..., : candidates(entropy, window) - 1])


def _leading(flags: Bools) -> Ints:
    return np.asarray(np.logical_and.accumulate(flags, axis=-1).sum(axis=-1), dtype=np.int64)
