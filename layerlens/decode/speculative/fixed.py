"""Policies whose set is known before the first token."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from layerlens.decode.speculative.policy import Search, Settled, SkipPolicy, candidates, n_of, number
from layerlens.decode.speculative.skipping import indispensable, parts_of
from layerlens.decode.speculative.skipset import SkipSet, block_numbers, refuse_no_such_blocks
from layerlens.errors import ModelError, OptionError
from layerlens.models import Model


@dataclass(frozen=True)
class FixedSkip(SkipPolicy):
    """The same set for every token."""

    skipped: "SkipSet | Collection[int] | str | Path"
    """A `SkipSet`, numbers of blocks (0-based), or the path of a file that `SkipSet.save` wrote."""

    def check(self) -> None:
        """As for every policy, and the numbers are whole."""
        super().check()
        if isinstance(self.skipped, SkipSet | str | Path):
            return
        if isinstance(self.skipped, Collection) and not isinstance(self.skipped, Mapping):
            block_numbers(self.skipped, "skipped")
            return
        what = "is neither a set of blocks nor a file"
        raise OptionError.about("skipped", self.skipped, what, "give numbers of blocks, or a path")

    def search(self, model: Model) -> Search:
        """The set, if the model can leave it out."""
        skips = self.skipped
        if isinstance(skips, str | Path):
            skips = SkipSet.load(skips, model)
        elif not isinstance(skips, SkipSet):
            skips = SkipSet.of_blocks(skips, policy="fixed")
        refuse_no_such_blocks(skips, model.n_layers, indispensable(model))
        if not skips.is_of_blocks and parts_of(model) is None:
            problem = f"the blocks of {model.source} ({model.family}) can be left out as a whole only"
            raise ModelError(problem, "give numbers of blocks", given=model.source)
        return Settled(skips)


@dataclass(frozen=True)
class EveryOther(SkipPolicy):
    """Every second block between the first and the last."""

    def search(self, model: Model) -> Search:
        """Blocks 1, 3, 5, ..."""
        skips = [block for block in candidates(model) if block % 2]
        if not skips:
            what = f"has {model.n_layers} layers, none of which this policy leaves out"
            raise OptionError.about("model", model.source, what, "give another policy")
        return Settled(SkipSet.of_blocks(skips, policy="every-other"))


@dataclass(frozen=True)
class Traced(SkipPolicy):
    """The blocks that changed the stream least in a run: a small norm ratio, and an I/O cosine near 1."""

    run: str | Path
    """A run directory of the same model."""
    skip_ratio: float = 0.45
    """The share of the candidates to leave out."""

    def check(self) -> None:
        """As for every policy, and the share is one."""
        super().check()
        if not isinstance(self.run, str | Path):
            raise OptionError.about("run", self.run, "is not a path", "give that of a run directory")
        number("skip_ratio", self.skip_ratio, 0, 1)

    def search(self, model: Model) -> Search:
        """The candidates with the smallest sum of two ranks: by mean norm ratio, and by mean 1 − I/O cosine.

        Raises:
            RunError: there is no such run.
            OptionError: the run is one of another model.
        """
        from layerlens.analysis.layers import by_layer
        from layerlens.records.reader import Records

        run = Records(self.run)
        about = run.manifest["model"]
        if about.get("n_layers") != model.n_layers or about.get("fingerprint") != model.fingerprint():
            what = f"is a run of {str(about.get('source'))[:100]!r}, and not of these weights"
            raise OptionError.about("run", str(self.run), what, f"give a run of {model.source}")
        means = by_layer(run).set_index("layer")
        able = candidates(model)
        own = means.loc[[block + 1 for block in able]]
        ranks = own["norm_ratio"].rank() + (1 - own["io_cosine"]).rank()
        n_skipped = n_of(self.skip_ratio, len(able))
        first = sorted(range(len(able)), key=lambda place: (float(ranks.iloc[place]), place))[:n_skipped]
        found = {"policy": "traced", "run": str(self.run), "skip_ratio": self.skip_ratio}
        return Settled(SkipSet.of_blocks((able[place] for place in first), **found))
