"""A run with its tables, and with every analysis of them as a method."""

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from layerlens import analysis, records
from layerlens.errors import OptionError
from layerlens.notebook import Framed, as_html
from layerlens.records.reader import Records
from layerlens.records.tidy import write_tidy


class Run(Records):
    """What one trace recorded, with the analyses of it."""

    def __repr__(self) -> str:
        model, dataset = self.manifest["model"], self.manifest["dataset"]
        strategy = " ".join(f"{name} {value}" for name, value in self.manifest["strategy"].items() if name != "name")
        of_all = "" if self.is_complete else f" of {dataset['rows']}"
        lines = [
            f"Run {self.path}",
            f"{model['source']} ({', '.join(str(model[key]) for key in ('family', 'dtype') if key in model)}), "
            f"{self.n_layers} layers",
            f"{len(self.prompts)}{of_all} prompts of {dataset['name']}",
            f"{len(self.positions):,} positions, {int(self.positions['is_generated'].sum()):,} of them generated",
            f"strategy {self.manifest['strategy']['name']}{f' ({strategy})' if strategy else ''}, mode "
            f"{self.manifest['mode']}{'' if self.lens == 'logit' else f', lens {self.lens}'}",
        ]
        return "\n  ".join(lines)

    def _repr_html_(self) -> str:
        return as_html(repr(self))

    def show(self, height: int = 720, beside: "Run | str | os.PathLike[str] | None" = None) -> Framed:
        """The token explorer of `layerlens report`, for the last line of a notebook's cell.

        Args:
            height: in pixels.
            beside: another run of the same prompts, or its path, to explore beside this one.

        Raises:
            RunError: a run holds no complete prompt, or the two runs share no prompt.
        """
        from layerlens.report import explorer_html

        other = None if beside is None else _run("beside", beside)
        return Framed(explorer_html(self, beside=other), height)

    def report(
        self, path: str | os.PathLike[str] | None = None, beside: "Run | str | os.PathLike[str] | None" = None
    ) -> Path:
        """Write the findings of the run, and an explorer of its tokens, as one HTML file; see docs/report.md.

        Args:
            path: the file to write, .html; by default report.html in the run directory.
            beside: another run of the same prompts, or its path, to explore beside this one.

        Returns:
            the path.

        Raises:
            RunError: a run holds no complete prompt, or the two runs share no prompt.
        """
        from layerlens.report import write_report

        other = None if beside is None else _run("beside", beside)
        return write_report(self, self.path / "report.html" if path is None else Path(path), beside=other)

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write a row per token and layer as csv, and return the path; see `records.tidy.write_tidy`."""
        return write_tidy(self, path, "csv")

    def to_parquet(self, path: str | os.PathLike[str]) -> Path:
        """Write a row per token and layer as parquet, and return the path; see `records.tidy.write_tidy`."""
        return write_tidy(self, path, "parquet")

    def by_token(self) -> pd.DataFrame:
        """One row per token with its text, and no lists of values per layer; see `analysis.by_token`."""
        return analysis.by_token(self)

    def by_layer(self) -> pd.DataFrame:
        """One row per layer with the mean of every measure; see `analysis.by_layer`."""
        return analysis.by_layer(self)

    def phases(self, rule: str = "plateau") -> pd.DataFrame:
        """Phases I, II and III by the rule "plateau" or "paper"; see `analysis.phases`."""
        return analysis.phases(self, rule)

    def partition(self) -> pd.DataFrame:
        """Perturbed, unperturbed and all tokens, counted and averaged; see `analysis.partition`."""
        return analysis.partition(self)

    def perturbation_parts(self) -> pd.DataFrame:
        """What attention and MLP of the last layer do to the entropy; see `analysis.perturbation_parts`."""
        return analysis.perturbation_parts(self)

    def parts_by_layer(self) -> pd.DataFrame:
        """What attention and MLP of every layer do to the entropy; see `analysis.parts_by_layer`."""
        return analysis.parts_by_layer(self)

    def valleys(self) -> pd.DataFrame:
        """V_onset, V* and the lowest layer of the mean entropy curves; see `analysis.valleys`."""
        return analysis.valleys(self)

    def substitutions(self) -> pd.DataFrame:
        """Generated tokens at which the valley ranks another one first than layer L; see `analysis.substitutions`."""
        return analysis.substitutions(self)

    def replacements(self) -> pd.DataFrame:
        """Tokens whose selected layer ranks another one first than the last layer; see `analysis.replacements`."""
        return analysis.replacements(self)

    def valley_statistics(self) -> pd.DataFrame:
        """What decoding from the valley does to tokens, or would do; see `analysis.valley_statistics`."""
        return analysis.valley_statistics(self)

    def by_entropy_band(self, edges: Sequence[float] = analysis.ENTROPY_BANDS) -> pd.DataFrame:
        """Valleys and substitutions by how sure the last layer is; see `analysis.by_entropy_band`."""
        return analysis.by_entropy_band(self, edges)

    def by_relative_position(self, bins: int = 10) -> pd.DataFrame:
        """Valleys and substitutions from the beginning to the end of texts; see `analysis.by_relative_position`."""
        return analysis.by_relative_position(self, bins)

    def walk_depths(self) -> pd.DataFrame:
        """How far walks back from the last layer go; see `analysis.walk_depths`."""
        return analysis.walk_depths(self)

    def agreement(self) -> pd.DataFrame:
        """One row per layer: how often it agrees with the last one about the next token; see `analysis.agreement`."""
        return analysis.agreement(self)

    def earliest_agreement(self) -> pd.DataFrame:
        """The mean earliest layer that has the last layer's first choice; see `analysis.earliest_agreement`."""
        return analysis.earliest_agreement(self)

    def onset(self, rank: int = 1) -> pd.DataFrame:
        """From which layer on the emitted token is among the first `rank` entries; see `analysis.onset`."""
        return analysis.onset(self, rank)

    def settling(self, g: float | Sequence[float] = 0.5, rho: float = 0.85, *, unit: str = "bits") -> pd.DataFrame:
        """Settling depth and deep-thinking ratio, for one threshold g or several; see `analysis.settling`."""
        return analysis.settling(self, g, rho, unit=unit)

    def dispensable(self) -> pd.DataFrame:
        """How far measures agree about which layers a draft can do without; see `analysis.dispensable`."""
        return analysis.dispensable(self)

    def kind_jumps(self) -> pd.DataFrame:
        """Jumps of entropy between layers of different kinds and elsewhere; see `analysis.kind_jumps`."""
        return analysis.kind_jumps(self)

    def substitution_pairs(self, k: int = 20) -> pd.DataFrame:
        """The most frequent pairs of a standard and a confident token; see `analysis.substitution_pairs`."""
        return analysis.substitution_pairs(self, k)

    def substituted_tokens(self, method: str, k: int = 20) -> pd.DataFrame:
        """The most frequent standard ("last") or "confident" tokens; see `analysis.substituted_tokens`."""
        return analysis.substituted_tokens(self, method, k)

    def class_shares(self, whole_words: bool = False, by: str = "class") -> pd.DataFrame:
        """What kinds of words are substituted; see `analysis.class_shares`."""
        return analysis.class_shares(self, whole_words, by)

    def overhead(self) -> pd.DataFrame:
        """What walking back costs beside the forward pass; see `analysis.overhead`."""
        return analysis.overhead(self)

    def compare(self, other: "Run | str | os.PathLike[str]") -> pd.DataFrame:
        """Another run of the same prompts, or its path, beside this one, paired by prompt; see `analysis.compare`."""
        return analysis.compare(self, _run("other", other))

    def compare_outputs(self, other: "Run | str | os.PathLike[str]") -> pd.DataFrame:
        """How far the outputs of two runs of the same prompts are the same; see `analysis.compare_outputs`."""
        return analysis.compare_outputs(self, _run("other", other))


def _run(option: str, given: object) -> Records:
    """The run itself, or the run at that path; OptionError where it is neither."""
    if isinstance(given, Records):
        return given
    if isinstance(given, str | os.PathLike):
        return open_run(given)
    raise OptionError.about(option, given, "is not a run", "give a run, or the path of one")


def merge(runs: Sequence[str | os.PathLike[str]], *, out: str | os.PathLike[str]) -> Run:
    """One run of the prompts of several, written to `out`; see `records.merge_runs`."""
    return Run(records.merge_runs(runs, out))


def open_run(path: str | os.PathLike[str]) -> Run:
    """The run at `path`, complete or not; RunError where there is none, or where it has another format."""
    return Run(path)
