"""`layerlens fit-lens`: from a model and texts to a lens that its early layers can be read through."""

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layerlens.cli import options
from layerlens.errors import OptionError, spelled

if TYPE_CHECKING:
    from layerlens.datasets import Dataset
    from layerlens.fitting import Fitted

fit_lens = typer.Typer(
    help="Fit a lens to a model: what brings states of early layers to where the head can read them.",
    add_completion=False,
    rich_markup_mode=None,
)

Out = Annotated[Path, typer.Option(help="File to write, .safetensors.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the fit that was begun at --out.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the lens at --out, once the new one is fitted.")]
MaxLength = Annotated[int, typer.Option(help="Tokens of a text at most; what follows is left out.")]
SkipFirst = Annotated[int, typer.Option(help="Positions at the beginning of each text that are left out.")]


@dataclass(frozen=True)
class Texts:
    """What a lens is fitted on."""

    dataset: Annotated[str | None, typer.Option(help="Name of a dataset; see `layerlens datasets`.")] = None
    prompts: Annotated[Path | None, typer.Option(help="File of texts: .txt, one a line, or .jsonl.")] = None
    data_file: options.DataFile = None
    limit: options.Limit = None

    def read(self, seed: int) -> "Dataset":
        """The texts."""
        import layerlens as ll

        if (self.dataset is None) == (self.prompts is None):
            names = (spelled("dataset"), spelled("prompts"))
            problem = (
                f"{'both' if self.dataset else 'neither'} {(' and ' if self.dataset else ' nor ').join(names)} given"
            )
            raise OptionError(problem, "give one of them", option="dataset", given=self.dataset)
        if self.dataset is not None:
            return ll.dataset(self.dataset, limit=self.limit, data_file=self.data_file, seed=seed)
        if self.data_file is not None:
            what = f"belongs to {spelled('dataset')}"
            raise OptionError.about("data_file", self.data_file, what, "drop it, or name the dataset")
        assert self.prompts is not None
        return ll.read_prompts(self.prompts, limit=self.limit)


@dataclass(frozen=True)
class Taken:
    """How texts are taken."""

    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Wrap texts in the chat template, instead of taking them as given.")
    ] = False
    seed: Annotated[int, typer.Option(help="Of the split of the texts into those to fit on and those held out.")] = 0


@fit_lens.callback()
def _group() -> None:
    pass


@fit_lens.command("linear")
@options.grouped
def linear(
    *,
    model: options.Model,
    texts: Texts,
    out: Out,
    max_length: MaxLength = 512,
    skip_first: SkipFirst = 1,
    taken: Taken,
    loading: options.Loading,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> int:
    """Fit a linear lens: ridge regression from the states of each layer to those of the last, in one pass over texts.

    A tenth of the texts is held out to choose the penalty, and another tenth to measure what the lens gains.
    """
    settings = {"max_length": max_length, "skip_first": skip_first, **asdict(taken)}
    return _fit("linear", model, texts, out, settings, loading, resume=resume, overwrite=overwrite)


@fit_lens.command("tuned")
@options.grouped
def tuned(
    *,
    model: options.Model,
    texts: Texts,
    out: Out,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="linear:FILE", help="Lens to begin as. [default: one is fitted to these texts]"),
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of training, each on states of one text.")] = 250,
    states: Annotated[int, typer.Option(help="Positions of the text that a step takes at most.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="Of Adam at the first step; it falls linearly to zero.")] = 3e-4,
    max_length: MaxLength = 512,
    skip_first: SkipFirst = 1,
    taken: Taken,
    loading: options.Loading,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> int:
    """Fit a tuned lens: translators trained to say what the last layer says, begun as the linear lens.

    A tenth of the texts is held out to choose the best translator of each layer, and another tenth to measure what the
    lens gains.
    """
    settings = {"start": start, "steps": steps, "states": states, "learning_rate": learning_rate}
    settings |= {"max_length": max_length, "skip_first": skip_first, **asdict(taken)}
    return _fit("tuned", model, texts, out, settings, loading, resume=resume, overwrite=overwrite)


@fit_lens.command("jacobian")
@options.grouped
def jacobian(
    *,
    model: options.Model,
    texts: Texts,
    out: Annotated[Path, typer.Option(help="File to write, .pt, in the format of TransformerLens.")],
    most_texts: Annotated[int, typer.Option(help="Texts to fit on at most.")] = 100,
    max_length: MaxLength = 128,
    skip_first: SkipFirst = 16,
    dim_batch: Annotated[int, typer.Option(help="Components that one backward pass takes; more take more memory.")] = 8,
    taken: Taken,
    loading: options.Loading,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> int:
    """Fit a Jacobian lens by TransformerLens (extra `backends`): how the last state moves with that of each layer.

    The derivatives are summed over target positions and averaged over source positions and texts. The layers are
    1..L-1, in float32. A tenth of the texts is held out to measure what the lens gains.
    """
    settings = {"most_texts": most_texts, "max_length": max_length, "skip_first": skip_first, "dim_batch": dim_batch}
    settings |= asdict(taken)
    return _fit("jacobian", model, texts, out, settings, loading, resume=resume, overwrite=overwrite)


def _fit(
    kind: str,
    model: str,
    texts: Texts,
    out: Path,
    settings: dict[str, Any],
    loading: options.Loading,
    *,
    resume: bool,
    overwrite: bool,
) -> int:
    # refused before torch is imported
    asked = texts.read(settings["seed"])
    loading.refuse_unloadable(model)
    # and before the model is loaded
    from layerlens.fitting.fit import options_of, refuse_unless_free

    refuse_unless_free(out, options_of(kind, settings), resume=resume, overwrite=overwrite)

    import layerlens as ll

    try:
        fitted = ll.fit_lens(loading.load(model), asked, kind, out=out, resume=resume, overwrite=overwrite, **settings)
    except KeyboardInterrupt:
        typer.echo(f"layerlens: interrupted; continue with {spelled('resume', True)}", err=True)
        return 130
    print_fitted(fitted)
    return 0


def print_fitted(fitted: "Fitted") -> None:
    """What a fit took and what it gained."""
    from rich.table import Table

    from layerlens.cli.grids import print_table

    said, gain = fitted.said, fitted.gain
    rate = said["seconds"] / max(said["n_tokens"], 1) * 10_000
    typer.echo(
        f"\nfitted on {said['n_tokens']:,} tokens of {said['n_texts']:,} texts in {said['seconds']:,.0f} s, "
        f"{rate:,.1f} s per 10,000 tokens"
    )
    n_tokens, n_texts = gain.loc[0, ["n_tokens", "n_texts"]]
    typer.echo(f"KL from the last layer, nats, on {n_tokens:,.0f} tokens of {n_texts:,.0f} texts not used for it")
    table = Table(box=None, padding=(0, 3, 0, 0))
    table.add_column("layer", justify="right")
    for heading in ("logit lens", f"{fitted.kind} lens"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in gain.to_dict("records"):
        table.add_row(f"{row['layer']:.0f}", _mean(row, "kl_logit"), _mean(row, "kl_lens"))
    print_table(table)
    typer.echo(f"lens   {fitted.path}")
    typer.echo(f"trace  layerlens trace --lens {shlex.quote(fitted.lens)} ...")


def _mean(row: dict[Any, Any], name: str) -> str:
    return f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"
