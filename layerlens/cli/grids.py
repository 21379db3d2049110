"""Tables on standard output, of which nothing is left out where it is narrow or a pipe."""

from rich.console import Console, ConsoleDimensions
from rich.measure import Measurement
from rich.table import Table


def print_table(table: Table) -> None:
    """Print a table at the width that it needs, which can be more than the terminal has; its cells are no markup."""
    console = Console(highlight=False, markup=False, emoji=False)
    needed = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    # rich would cut what does not fit; it believes a width only together with a height
    console.size = ConsoleDimensions(max(console.width, needed), console.height)
    console.print(table)
