"""Which attention modules and MLPs a draft leaves out, and how such a set is saved."""

import json
import operator
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerlens.errors import OptionError, first_sentence
from layerlens.parsing import json_of
from layerlens.paths import expanded

if TYPE_CHECKING:
    from layerlens.models import Model

_FORMAT = "layerlens skip set 1"
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class SkipSet:
    """What a draft leaves out; a block that is in both sets is left out as a whole.

    Attributes:
        attention: the blocks, 0-based, without their attention.
        mlp: the blocks without their MLP.
        found: how the set was found, for the file that it is saved in.
    """

    attention: frozenset[int] = frozenset()
    mlp: frozenset[int] = frozenset()
    found: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for name in ("attention", "mlp"):
            object.__setattr__(self, name, block_numbers(getattr(self, name), name))

    @classmethod
    def of_blocks(cls, blocks: Iterable[int], **found: Any) -> "SkipSet":
        """Whole blocks."""
        whole = block_numbers(blocks, "blocks")
        return cls(whole, whole, found)

    @property
    def blocks(self) -> frozenset[int]:
        """The blocks that are left out as a whole."""
        return self.attention & self.mlp

    @property
    def is_of_blocks(self) -> bool:
        """Whether no block is left out in part."""
        return self.attention == self.mlp

    def __len__(self) -> int:
        """How many attention modules and MLPs are left out."""
        return len(self.attention) + len(self.mlp)

    def __str__(self) -> str:
        parts = [f"{number}" for number in sorted(self.blocks)]
        parts += [f"{number} attention" for number in sorted(self.attention - self.mlp)]
        parts += [f"{number} MLP" for number in sorted(self.mlp - self.attention)]
        return ", ".join(parts) or "nothing"

    def share(self, n_layers: int) -> float:
        """The share of the model's attention modules and MLPs that is left out, 0..1."""
        return len(self) / (2 * n_layers)

    def save(self, path: str | Path, model: "Model") -> None:
        """Write the set to a file, with the model that it was found for.

        Args:
            path: such as "skipset.json"; a file that is there is replaced.
            model: what it was found on.

        Raises:
            OptionError: the model has no such blocks, or the file cannot be written or lies in a run directory.
        """
        from layerlens.models.use import loaded_model
        from layerlens.records.places import refuse_inside

        loaded_model(model)
        refuse_no_such_blocks(self, model.n_layers)
        content = {
            "format": _FORMAT,
            "model": {
                "source": model.source,
                "family": model.family,
                "n_layers": model.n_layers,
                "fingerprint": model.fingerprint(),
            },
            "attention": sorted(self.attention),
            "mlp": sorted(self.mlp),
            "found": self.found,
        }
        text = json.dumps(content, indent=1, default=str) + "\n"
        try:
            file = expanded(path)
            refuse_inside(file, option="path")
            file.write_text(text, encoding="utf-8")
        except (OSError, ValueError) as error:  # the latter for a path that no file can have
            what = f"could not be written ({getattr(error, 'strerror', None) or error})"
            raise OptionError.about("path", str(path), what, "give another path") from error

    @classmethod
    def load(cls, path: str | Path, model: "Model") -> "SkipSet":
        """The set in a file that `save` wrote for this model.

        Raises:
            OptionError: the file cannot be read, holds no such set, or was written for another model.
        """
        given = str(path)
        content = _read(given)
        try:
            own, attention, mlp = dict(content["model"]), content["attention"], content["mlp"]
            n_layers, fingerprint = own["n_layers"], own["fingerprint"]
            found = content.get("found", {})
        except (TypeError, ValueError) as error:
            raise _malformed(given, "it says of no model") from error
        except KeyError as error:
            raise _malformed(given, f"it has no {first_sentence(error)}") from error
        lists = isinstance(attention, list) and isinstance(mlp, list) and isinstance(found, dict)
        if not lists or not all(type(number) is int for number in [*attention, *mlp]):
            raise _malformed(given, "its blocks are not lists of whole numbers")
        if n_layers != model.n_layers or fingerprint != model.fingerprint():
            what = f"was found for {str(own.get('source'))[:100]!r} of {n_layers!r} layers, and not for these weights"
            advice = f"find one for {model.source}, which has {model.n_layers} layers"
            if n_layers == model.n_layers:  # the weights of one model in two formats are two
                advice += ", or load the model with the dtype that it was found with"
            raise OptionError.about("skipped", given, what, advice)
        skips = cls(frozenset(attention), frozenset(mlp), found)
        refuse_no_such_blocks(skips, model.n_layers)
        return skips


def block_numbers(blocks: Iterable[int], option: str) -> frozenset[int]:
    """The numbers of blocks as plain integers; OptionError about the option where one is something else."""
    try:
        given = list(blocks)
        if any(isinstance(one, bool) for one in given):
            raise TypeError
        return frozenset(operator.index(one) for one in given)
    except TypeError as error:
        raise OptionError.about(option, blocks, "are not numbers of blocks", "give whole numbers from 0") from error


def refuse_no_such_blocks(skips: SkipSet, n_layers: int, kept: Collection[int] = ()) -> None:
    """OptionError where the model has no such block, or a block among those that must be kept."""
    for number in sorted(skips.attention | skips.mlp):
        if number not in range(n_layers):
            what = f"names block {number}, which the model does not have"
            raise OptionError.about("skipped", str(skips), what, f"give 0..{n_layers - 1}")
        if number in kept:
            what = f"names block {number}, which no draft can leave out"
            raise OptionError.about("skipped", str(skips), what, "leave it out of the set")


def _read(path: str) -> dict[str, Any]:
    try:
        file = expanded(path)
        if file.stat().st_size > _MOST_BYTES:
            raise _malformed(path, "it is too large")
        content = json_of(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _malformed(path, "it is not JSON") from error
    except OSError as error:
        what = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise OptionError.about("skipped", path, what, "give a file that a skip set was saved in") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise _malformed(path, "its format is another one")
    return content


def _malformed(path: str, why: str) -> OptionError:
    advice = "give a file that a skip set was saved in"
    return OptionError.about("skipped", path, f"holds no skip set ({why})", advice)
