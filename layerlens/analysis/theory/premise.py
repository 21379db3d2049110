"""Theorem 1 of arXiv 2606.21906 under its own premise: bounded noise, and a late rise of more than twice the bound.

Where no layer's noise exceeds b in size, S falls by at least 2b from each layer to the next on its way to V*, and every
layer after V* rises by more than 2b, no draw can reverse a step: H(l-1) < H(l) after V*, and H(V*-1) >= H(V*). Both
Theorem 1's V-hat and Algorithm 1 then stop at V*, whatever the noise does below its bound. `simulate` draws normal
noise, which has no bound. So its tables show how much of the theorem remains true where this premise fails.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from layerlens.analysis.theory.curve import DRAWS, SEED, Parameters
from layerlens.analysis.theory.rules import WINDOW, algorithm_layers, theorem_layers
from layerlens.analysis.theory.tables import over_draws
from layerlens.analysis.uncertainty import Floats
from layerlens.errors import OptionError

BOUNDED: dict[str, Callable[[np.random.Generator, tuple[int, int]], Floats]] = {
    "even": lambda drawn, shape: drawn.uniform(-1, 1, shape),
    "extreme": lambda drawn, shape: drawn.choice([-1.0, 1.0], shape),
}
"""Noise between -1 and 1: evenly spread, or only the two ends, which is the worst that the bound allows."""


def margins(parameters: Parameters) -> tuple[float, float]:
    """The least rise from a layer to the next after V*, and the fall from V*-1 to V*, of S in nats.

    The premise holds for noise of at most b where the rise is above 2b and the fall at least 2b. The rise is infinite
    where V* is the last layer, which Theorem 1 does not speak of.
    """
    steps = np.diff(parameters.noiseless)
    late = steps[parameters.valley - 1 :]
    return float(late.min()) if len(late) else float("inf"), float(-steps[parameters.valley - 2])


def premise_table(
    parameters: Parameters, bounds: Sequence[float], *, window: int = WINDOW, n_draws: int = DRAWS, seed: int = SEED
) -> pd.DataFrame:
    """One row per bound, noise and rule: in how many draws the rule's layer is V*.

    This noise replaces that of the parameters. It is independent, and at every layer at most the bound in size.

    Args:
        parameters: the curve; V* must lie before the last layer.
        bounds: the largest size of the noise in nats, one after the other.
        window: number of candidates.
        n_draws: of the simulation; both rules see the same draws.
        seed: of the draws.

    Columns: bound, in nats; noise, a name of `BOUNDED`; rule, "theorem" or "algorithm"; holds, whether the premise
    does; n_at, the number of draws whose layer is V*; at, their share with `_low` and `_high` (Wilson's 95 %); n_draws.

    Raises:
        OptionError: V* is the last layer, a bound is negative, the window does not fit, or there are fewer than two
            draws.
    """
    if parameters.valley == parameters.n_layers:
        raise OptionError(
            f"V* {parameters.valley} is the last layer, so there is no late rise",
            "choose an earlier V*",
            option="valley",
            given=parameters.valley,
        )
    if n_draws < 2:
        raise OptionError(f"{n_draws} draws have no interval", "ask for at least 2", option="n_draws", given=n_draws)
    rise, fall = margins(parameters)
    rows = []
    for bound in bounds:
        if not 0 <= bound < np.inf:
            raise OptionError(
                f"noise of at most {bound:g} nats is out of range",
                "give a bound of at least 0",
                option="bounds",
                given=bound,
            )
        for name, draw in BOUNDED.items():
            noise = bound * draw(np.random.default_rng(seed), (n_draws, parameters.n_layers))
            entropy = parameters.noiseless + noise
            for rule, choose in (("theorem", theorem_layers), ("algorithm", algorithm_layers)):
                there = choose(entropy, window) == parameters.valley
                holds = rise > 2 * bound and fall >= 2 * bound
                row = {"bound": bound, "noise": name, "rule": rule, "holds": holds, "n_at": int(there.sum())}
                rows.append(row | over_draws("at", there) | {"n_draws": n_draws})
    table: pd.DataFrame = pd.DataFrame(rows)
    return table
