"""Tables on standard output. They are printed in full, even in a narrow terminal or a pipe."""

from rich.console import Console, ConsoleDimensions
from rich.measure import Measurement
from rich.table import Table


def print_table(table: Table) -> None:
    """Print a table at the width that it needs, even if the terminal is narrower. Its cells are not read as markup."""
    console = Console(highlight=False, markup=False, emoji=False)
    needed = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    # rich would cut what does not fit; it believes a width only together with a height
    console.size = ConsoleDimensions(max(console.width, needed), console.height)
    console.print(table)
