"""A figure as files: for the eye, for print, and the numbers it draws."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from layerlens.errors import OptionError
from layerlens.plots.style import look


def save(figure: Figure, table: pd.DataFrame, out_dir: Path, stem: str) -> list[Path]:
    """The paths of STEM.png, STEM.pdf and STEM.csv (the table the figure draws) in a directory, made if missing.

    The same figure gives the same bytes: no time of writing is kept in the files.

    Raises:
        OptionError: the directory cannot be written.
    """
    png, pdf, csv = paths = [out_dir / f"{stem}.{suffix}" for suffix in ("png", "pdf", "csv")]
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        with look():
            figure.savefig(png, metadata={"Software": None})
            figure.savefig(pdf, metadata={"CreationDate": None})
        table.to_csv(csv, index=False, float_format="%.6g")
    except OSError as error:
        reason = error.strerror or str(error)
        raise OptionError(f"figures cannot be written to {out_dir} ({reason}); name another directory") from error
    return paths
