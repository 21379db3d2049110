"""A table as files: csv for programs, Markdown for readers, LaTeX for papers."""

import math
from pathlib import Path
from typing import Any

import pandas as pd

from layerlens.errors import OptionError

_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "≥": r"$\geq$",
    "→": r"$\to$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def save(table: pd.DataFrame, title: str, out_dir: Path, stem: str) -> list[Path]:
    """The paths of STEM.csv, STEM.md and STEM.tex in a directory, made if missing.

    Raises:
        OptionError: the directory cannot be written.
    """
    csv, md, tex = paths = [out_dir / f"{stem}.{suffix}" for suffix in ("csv", "md", "tex")]
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        table.to_csv(csv, index=False, float_format="%.6g")
        md.write_text(markdown(table, title), encoding="utf-8")
        tex.write_text(latex(table, title), encoding="utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
        problem = f"tables cannot be written to {out_dir} ({reason})"
        raise OptionError(problem, "name another directory", option="out", given=out_dir) from error
    return paths


def markdown(table: pd.DataFrame, title: str) -> str:
    """The table under its title as GitHub shows it; numbers to three digits, empty cells where there is none."""
    heads = [_head(name) for name in table]
    rules = ["---:" if _is_number(table[name]) else "---" for name in table]
    rows = [[cell(value).replace("\\", "\\\\").replace("|", "\\|") for value in row] for row in _rows(table)]
    lines = ["| " + " | ".join(line) + " |" for line in [heads, rules, *rows]]
    return f"**{title}**\n\n" + "\n".join(lines) + "\n"


def latex(table: pd.DataFrame, title: str) -> str:
    """The table as a LaTeX float with booktabs rules; every sign that LaTeX would read is escaped."""
    columns = "".join("r" if _is_number(table[name]) else "l" for name in table)
    heads = " & ".join(_escaped(_head(name)) for name in table)
    rows = "".join(" & ".join(_escaped(cell(value)) for value in row) + " \\\\\n" for row in _rows(table))
    return (
        f"\\begin{{table}}\n\\centering\n\\caption{{{_escaped(title)}}}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n"
        f"{heads} \\\\\n\\midrule\n{rows}\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
    )


def cell(value: Any) -> str:
    """A value as a reader wants it: whole numbers grouped, others to three digits, nothing where there is none."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        if value == 0 or not math.isfinite(value):
            return f"{value:g}"
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:,.{digits}f}".replace("-", "−")
    return f"{value:,}".replace("-", "−") if isinstance(value, int) else " ".join(str(value).split())


def _rows(table: pd.DataFrame) -> list[list[Any]]:
    return [
        [value.item() if hasattr(value, "item") else value for value in row]
        for row in table.itertuples(index=False, name=None)
    ]


def _head(name: Any) -> str:
    return str(name).replace("_", " ").replace("n tokens", "tokens").replace("n prompts", "prompts")


def _is_number(column: "pd.Series[Any]") -> bool:
    return pd.api.types.is_numeric_dtype(column)


def _escaped(text: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in text)
