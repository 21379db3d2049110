"""The result of a fit."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from layerlens.lens.files import Stored


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted lens, and what it gains.

    Attributes:
        path: the path of its file.
        kind: "linear", "tuned" or "jacobian".
        gain: mean KL(p_L ‖ p_l) in nats of each layer that the lens maps, on texts that were not used for it: layer,
            kl_logit (the logit lens) and kl_lens, each with `_low` and `_high` of its 95 % interval, n_tokens, n_texts.
        said: how it was fitted, as its file says.
    """

    path: Path
    kind: str
    gain: pd.DataFrame
    said: Mapping[str, Any]

    @classmethod
    def of(cls, path: Path, stored: Stored) -> "Fitted":
        """The result for a lens in a file that a fit wrote."""
        said = stored.fit.get("fit", stored.fit)  # TransformerLens adds entries of its own
        return cls(path, stored.kind, pd.DataFrame(said["gain"]), said)

    @property
    def lens(self) -> str:
        """The lens as an option names it: "linear:lens.safetensors"."""
        return f"{self.kind}:{self.path}"

    def __repr__(self) -> str:
        n, n_texts, seconds = (self.said[name] for name in ("n_tokens", "n_texts", "seconds"))
        return f"Fitted {self.lens} (on {n:,} tokens of {n_texts:,} texts in {seconds:,.0f} s)"
