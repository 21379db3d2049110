"""Files that come with layerlens: sample problems, word lists, the paper's numbers."""

from pathlib import Path

from layerlens.errors import LayerlensError


def shipped_file(name: str) -> Path:
    """The path of a file of the project's data folder: inside the package once installed, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    places = [package / "data" / name, package.parent / "data" / name]
    for place in places:
        if place.is_file():
            return place
    raise LayerlensError(f"{name} is not at {' or '.join(map(str, places))}", "install layerlens again", given=name)
