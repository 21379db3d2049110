"""The command line: parses, calls one function, prints where the result is. Nothing heavy is imported for --help."""

import sys

import typer

from layerlens.cli import figure, lists
from layerlens.cli import trace as tracing
from layerlens.errors import LayerlensError

app = typer.Typer(
    name="layerlens",
    help="See what every layer of a language model does to every token, and how sure it would be if it stopped there.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help answers in two thirds of the time
)
app.command("trace")(tracing.trace)
app.command("figure")(figure.figure)
app.command("models")(lists.models)
app.command("datasets")(lists.datasets)
app.command("doctor")(lists.doctor)

_INTERRUPTED = 130


def main() -> None:
    """Run the command line and exit: 0 when what was asked for exists, 2 with one sentence when it cannot."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit status of the command line with these arguments; faults of layerlens itself are raised."""
    try:
        return int(app(args=arguments, standalone_mode=False) or 0)
    except LayerlensError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        print("layerlens: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except Exception as error:
        if not hasattr(error, "format_message"):  # what typer raises for unknown options and values it cannot parse
            raise
        return _refuse(error.format_message()) if str(error) else 2


def _refuse(message: str) -> int:
    print(f"layerlens: {' '.join(message.split())}", file=sys.stderr)
    return 2
