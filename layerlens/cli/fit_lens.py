"""`layerlens fit-lens`: from a model and texts to a lens through which its early layers can be read."""

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layerlens.cli import options
from layerlens.cli.printable import echo
from layerlens.errors import OptionError, spelled

if TYPE_CHECKING:
    from layerlens.datasets import Dataset
    from layerlens.fitting.fitted import Fitted

fit_lens = typer.Typer(
    help="Fit a lens to a model. A lens maps states of early layers to states that the head can read.",
    add_completion=False,
    rich_markup_mode=None,
)

Out = Annotated[Path, typer.Option(help="The .safetensors file to write.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the fit that was begun at --out.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the lens at --out as soon as the new one is fitted.")
]
MaxLength = Annotated[int, typer.Option(help="Use at most this many tokens of each text, from its beginning.")]
SkipFirst = Annotated[int, typer.Option(help="Leave out this many positions at the beginning of each text.")]


@dataclass(frozen=True)
class Texts:
    """The texts that a lens is fitted on."""

    dataset: Annotated[str | None, typer.Option(help="Name of a dataset; see `layerlens datasets`.")] = None
    prompts: Annotated[Path | None, typer.Option(help="File of texts: .txt with one text per line, or .jsonl.")] = None
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
    """How texts are used."""

    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Wrap texts in the chat template instead of using them as they are.")
    ] = False
    seed: Annotated[int, typer.Option(help="Seed for splitting the texts into those to fit on and those held out.")] = 0


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
    """Fit a linear lens: ridge regression from the states of each layer to those of the last layer.

    It takes one pass over the texts. A tenth of the texts is held out to choose the penalty, and another tenth to
    measure what the lens gains.
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
        typer.Option(
            "--from", metavar="linear:FILE", help="Linear lens to start from. [default: one is fitted to these texts]"
        ),
    ] = None,
    steps: Annotated[
        int, typer.Option(help="How many training steps to take; each step uses states of one text.")
    ] = 250,
    states: Annotated[int, typer.Option(help="Use at most this many positions of the text in each step.")] = 64,
    learning_rate: Annotated[
        float, typer.Option(help="Learning rate of Adam at the first step; it falls linearly to zero.")
    ] = 3e-4,
    max_length: MaxLength = 512,
    skip_first: SkipFirst = 1,
    taken: Taken,
    loading: options.Loading,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> int:
    """Fit a tuned lens: one translator per layer, trained to predict what the last layer predicts.

    The translators start from a linear lens. A tenth of the texts is held out to choose the best translator of each
    layer, and another tenth to measure what the lens gains.
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
    out: Annotated[Path, typer.Option(help="The .pt file to write, in the format of TransformerLens.")],
    most_texts: Annotated[int, typer.Option(help="Fit on at most this many texts.")] = 100,
    max_length: MaxLength = 128,
    skip_first: SkipFirst = 16,
    dim_batch: Annotated[
        int, typer.Option(help="How many components each backward pass computes; more need more memory.")
    ] = 8,
    taken: Taken,
    loading: options.Loading,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> int:
    """Fit a Jacobian lens: the derivative of the last layer's state by the state of each earlier layer.

    TransformerLens (extra `backends`) fits it. The derivatives are summed over target positions and averaged over
    source positions and texts. The lens has layers 1..L-1, in float32. A tenth of the texts is held out to measure what
    the lens gains.
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
    from layerlens.fitting.options import options_of, refuse_unless_free

    refuse_unless_free(out, options_of(kind, settings), resume=resume, overwrite=overwrite)
    asked = texts.read(settings["seed"])
    loading.refuse_unloadable(model)

    import layerlens as ll

    try:
        fitted = ll.fit_lens(loading.load(model), asked, kind, out=out, resume=resume, overwrite=overwrite, **settings)
    except KeyboardInterrupt:
        echo(f"layerlens: interrupted; continue with {spelled('resume', True)}", err=True)
        return 130
    print_fitted(fitted)
    return 0


def print_fitted(fitted: "Fitted") -> None:
    """Print what a fit cost and what the lens gains."""
    from rich.table import Table

    from layerlens.cli.grids import print_table

    said, gain = fitted.said, fitted.gain
    rate = said["seconds"] / max(said["n_tokens"], 1) * 10_000
    echo(
        f"\nfitted on {said['n_tokens']:,} tokens of {said['n_texts']:,} texts in {said['seconds']:,.0f} s, "
        f"{rate:,.1f} s per 10,000 tokens"
    )
    n_tokens, n_texts = gain.loc[0, ["n_tokens", "n_texts"]]
    echo(f"KL divergence from the last layer in nats, on {n_tokens:,.0f} tokens of {n_texts:,.0f} texts not fitted on")
    table = Table(box=None, padding=(0, 3, 0, 0))
    table.add_column("layer", justify="right")
    for heading in ("logit lens", f"{fitted.kind} lens"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in gain.to_dict("records"):
        table.add_row(f"{row['layer']:.0f}", _mean(row, "kl_logit"), _mean(row, "kl_lens"))
    print_table(table)
    echo(f"lens   {fitted.path}")
    echo(f"trace  layerlens trace --lens {shlex.quote(fitted.lens)} ...")


def _mean(row: dict[Any, Any], name: str) -> str:
    return f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"
