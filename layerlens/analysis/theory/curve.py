"""The curve of the theory and the noise on it, and entropies drawn from them."""

from dataclasses import astuple, dataclass
from math import sqrt

import numpy as np

from layerlens.analysis.uncertainty import Floats
from layerlens.errors import OptionError

DRAWS = 20_000
SEED = 0


@dataclass(frozen=True)
class Parameters:
    """The noiseless curve S and the noise on it; the formulas are those of `analysis.theory`.

    Raises:
        OptionError: a value is out of range or contradicts another.
    """

    n_layers: int
    """L, at least 2."""
    onset: int
    """V_onset, from 1 and before V*."""
    valley: int
    """V*, up to L."""
    plateau: float
    """H* up to V_onset, in nats."""
    lowest: float
    """H* from V* on, in nats; at most the plateau."""
    rise: float
    """The late perturbation at L, in nats, at least 0; it must be 0 where V* is L."""
    noise: float = 0.0
    """Standard deviation of the noise at layer L, in nats, at least 0."""
    early_factor: float = 1.0
    """The noise at layer 1 over the noise at layer L, above 0."""
    correlation: float = 0.0
    """Of the noise of neighbouring layers, above -1 and below 1."""

    def __post_init__(self) -> None:
        if not 1 <= self.onset < self.valley <= self.n_layers:
            order = f"V_onset {self.onset}, V* {self.valley} and {self.n_layers} layers"
            raise OptionError(
                f"{order} do not fit together",
                "choose 1 <= V_onset < V* <= the number of layers",
                option="valley",
                given=self.valley,
            )
        if not np.isfinite(astuple(self)).all():
            raise OptionError(f"{self} holds a number that is not finite", "give finite ones", given=self)
        if self.plateau < self.lowest:
            raise OptionError(
                f"a plateau of {self.plateau:g} nats is below the valley's {self.lowest:g}",
                "exchange them",
                option="plateau",
                given=self.plateau,
            )
        if self.rise < 0 or (self.rise > 0 and self.valley == self.n_layers):
            at = f"a rise of {self.rise:g} nats after V* {self.valley} of {self.n_layers} layers"
            raise OptionError(
                f"{at} is not possible",
                "give a rise of at least 0, and 0 where V* is the last layer",
                option="rise",
                given=self.rise,
            )
        if self.noise < 0 or self.early_factor <= 0 or not -1 < self.correlation < 1:
            given = f"noise {self.noise:g}, early_factor {self.early_factor:g}, correlation {self.correlation:g}"
            raise OptionError(
                f"{given} are out of range",
                "choose at least 0, above 0, and between -1 and 1",
                option="noise",
                given=self.noise,
            )

    @property
    def bare(self) -> Floats:
        """H*(1..L) in nats, [L]."""
        layer = np.arange(1, self.n_layers + 1)
        return np.interp(layer, [self.onset, self.valley], [self.plateau, self.lowest])

    @property
    def noiseless(self) -> Floats:
        """S(1..L) in nats, [L]: H* and the late perturbation."""
        layer = np.arange(1, self.n_layers + 1)
        late = np.maximum(0, layer - self.valley) / max(1, self.n_layers - self.valley)
        return self.bare + self.rise * late

    @property
    def sd(self) -> Floats:
        """Standard deviation of the noise of layers 1..L in nats, [L]."""
        layer = np.arange(1, self.n_layers + 1)
        return self.noise * self.early_factor ** ((self.n_layers - layer) / (self.n_layers - 1))


# The perturbed tokens of Qwen3.5-35B-A3B in Figure 4: V_onset, V*, the entropy at V*, the drop of 10.8 nats, the rise.
PAPER = Parameters(n_layers=40, onset=28, valley=39, plateau=11.32, lowest=0.52, rise=0.37)


def simulate(parameters: Parameters, *, n_draws: int = DRAWS, seed: int = SEED) -> Floats:
    """Observed entropies H in nats, [n_draws, L], one row a token; they may lie below 0 where the noise is large.

    Raises:
        OptionError: fewer than two draws.
    """
    if n_draws < 2:
        raise OptionError(f"{n_draws} draws have no interval", "ask for at least 2", option="n_draws", given=n_draws)
    normal = np.random.default_rng(seed).standard_normal((n_draws, parameters.n_layers))
    if parameters.correlation:
        fresh = sqrt(1 - parameters.correlation**2)
        for layer in range(1, parameters.n_layers):
            normal[:, layer] = parameters.correlation * normal[:, layer - 1] + fresh * normal[:, layer]
    observed: Floats = parameters.noiseless + parameters.sd * normal
    return observed
