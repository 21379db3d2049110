"""The command line. It parses, calls one function, and prints where the result is. --help imports nothing heavy."""

import sys
import warnings
from typing import Annotated, Any

import typer

from layerlens.cli import (
    ablate,
    bench,
    compare,
    doctor,
    export,
    figure,
    fit_lens,
    lists,
    merge,
    mistakes,
    report,
    table,
)
from layerlens.cli import evaluate as evaluating
from layerlens.cli import generate as generating
from layerlens.cli import lm_eval as harness
from layerlens.cli import serve as serving
from layerlens.cli import trace as tracing
from layerlens.cli.garbage import collect_rarely
from layerlens.cli.printable import printable
from layerlens.cli.spelling import CommandLine
from layerlens.cli.streams import CannotPrintError, discard, notices, output
from layerlens.errors import LayerlensError, Notice, is_out_of_memory, spelling
from layerlens.secrets import without_secrets

app = typer.Typer(
    name="layerlens",
    help="See what every layer of a language model does to every token, and how sure it would be if it stopped there.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help answers in two thirds of the time
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"layerlens {version('layerlens')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


app.command("trace")(tracing.trace)
app.command("generate")(generating.generate)
app.add_typer(bench.bench, name="bench")
app.command("figure")(figure.figure)
app.command("table")(table.table)
app.command("report")(report.report)
app.command("export")(export.export)
app.command("merge")(merge.merge)
app.command("compare")(compare.compare)
app.command("ablate")(ablate.ablate)
app.command("eval")(evaluating.evaluate)
app.add_typer(fit_lens.fit_lens, name="fit-lens")
app.command(
    "lm-eval",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(harness.lm_eval)
app.command("models")(lists.models)
app.command("datasets")(lists.datasets)
app.command("serve")(serving.serve)
app.command("doctor")(doctor.doctor)

_INTERRUPTED = 130
_READER_IS_GONE = 1  # such as that of `layerlens models | head -1`; nothing to say


def main() -> None:
    """Run the command line and exit: with 0 when the command is done, with 2 and one sentence when it cannot be."""
    sys.stdout, sys.stderr = output(sys.stdout), notices(sys.stderr)
    collect_rarely()
    warnings.showwarning = _show_notice  # type: ignore[assignment]
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit status of the command line with these arguments. Faults of layerlens itself are raised."""
    try:
        status = _status(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except CannotPrintError as error:
        discard(sys.stdout)
        if isinstance(error.__cause__, BrokenPipeError):
            return _READER_IS_GONE
        return _refuse(
            f"standard output cannot be written ({error}); send it elsewhere: the files that were written are complete"
        )


def _status(arguments: list[str]) -> int:
    command_line = typer.main.get_command(app)
    try:
        mistakes.refuse_not_utf8(arguments)
        mistakes.refuse_missing_values(command_line, arguments)
        with spelling(CommandLine(command_line, arguments)):
            done = command_line.main(args=arguments or ["--help"], prog_name="layerlens", standalone_mode=False)
        return int(done or 0)
    except LayerlensError as error:
        return _refuse(str(error))
    except (KeyboardInterrupt, typer.Abort):  # the latter from older typers, the newest return the status
        print("layerlens: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except Exception as error:
        if is_out_of_memory(error):
            return _refuse(mistakes.out_of_memory(error, command_line, arguments))
        if not hasattr(error, "format_message"):  # what typer raises for unknown options and values it cannot parse
            raise
        return _refuse(mistakes.sentence(error, command_line, arguments))


_LONGEST = 1500  # characters of a message; a value that was given can have any number
_show_warning = warnings.showwarning


def _show_notice(message: Warning | str, category: type[Warning], *where: Any) -> None:
    if issubclass(category, Notice):
        print(f"layerlens: note: {_told(message)}", file=sys.stderr)
    else:
        _show_warning(message, category, *where)


def _told(message: object) -> str:
    """One line, in which nothing acts on a terminal, and no password is."""
    text = printable(without_secrets(" ".join(str(message).split())))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


def _refuse(message: str) -> int:
    print(f"layerlens: {_told(message)}", file=sys.stderr)
    return 2
