"""A table as files: csv for programs, Markdown for readers, LaTeX for papers."""

import math
from pathlib import Path
from typing import Any

import pandas as pd

from layerlens.errors import OptionError
from layerlens.paths import expanded
from layerlens.sheets import write_csv

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
    out_dir = expanded(out_dir)
    csv, md, tex = paths = [out_dir / f"{stem}.{suffix}" for suffix in ("csv", "md", "tex")]
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        write_csv(table, csv)
        md.write_text(markdown(table, title), encoding="utf-8")
        tex.write_text(latex(table, title), encoding="utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
        problem = f"tables cannot be written to {out_dir} ({reason})"
        raise OptionError(problem, "name another directory", option="out", given=out_dir) from error
    return paths


def markdown(table: pd.DataFrame, title: str) -> str:
    """The table under its title in GitHub's Markdown. Numbers have three digits, and cells without a number are empty.

    If model and data are the same in all rows, they stand in the head of the column of their numbers. A column of
    differences without any value is left out.
    """
    table = _for_readers(table)
    heads = [_head(name) for name in table]
    rules = ["---:" if _is_number(table[name]) else "---" for name in table]
    rows = [[cell(value) for value in row] for row in _rows(table)]
    escaped = [[text.replace("\\", "\\\\").replace("|", "\\|") for text in line] for line in [heads, *rows]]
    lines = ["| " + " | ".join(line) + " |" for line in [escaped[0], rules, *escaped[1:]]]
    return f"**{title}**\n\n" + "\n".join(lines) + "\n"


def latex(table: pd.DataFrame, title: str) -> str:
    """The table as a LaTeX float with booktabs rules and the heads of `markdown`. Characters of LaTeX are escaped."""
    table = _for_readers(table)
    columns = "".join("r" if _is_number(table[name]) else "l" for name in table)
    heads = " & ".join(_escaped(_head(name)) for name in table)
    rows = "".join(" & ".join(_escaped(cell(value)) for value in row) + " \\\\\n" for row in _rows(table))
    return (
        f"\\begin{{table}}\n\\centering\n\\caption{{{_escaped(title)}}}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n"
        f"{heads} \\\\\n\\midrule\n{rows}\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
    )


def cell(value: Any) -> str:
    """A value as text: whole numbers grouped, other numbers to three digits, and nothing where there is no value."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        if value == 0 or not math.isfinite(value):
            return f"{value:g}"
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:,.{digits}f}".replace("-", "−")
    return f"{value:,}".replace("-", "−") if isinstance(value, int) else " ".join(str(value).split())


def _for_readers(table: pd.DataFrame) -> pd.DataFrame:
    """The table with model and data in the heads "measured" and "reported" if they are the same in all rows."""
    heads = {}
    for of in ("measured", "reported"):
        columns = [name for name in (f"{of}_model", f"{of}_data") if name in table]
        values = [[value for value in table[name].dropna().unique() if value] for name in columns]
        if of in table and columns and all(len(distinct) <= 1 for distinct in values):
            heads[of] = f"{of} ({', '.join(str(value) for distinct in values for value in distinct)})"
            table = table.drop(columns=columns)
    if "difference" in table and table["difference"].isna().all():
        table = table.drop(columns="difference")
    named: pd.DataFrame = table.rename(columns=heads)
    return named


def _rows(table: pd.DataFrame) -> list[list[Any]]:
    return [
        [value.item() if hasattr(value, "item") else value for value in row]
        for row in table.itertuples(index=False, name=None)
    ]


def _head(name: Any) -> str:
    said, bracket, origin = str(name).partition(" (")
    said = said.replace("_", " ").replace("n tokens", "tokens").replace("n prompts", "prompts")
    return f"{said}{bracket}{origin}"


def _is_number(column: "pd.Series[Any]") -> bool:
    return pd.api.types.is_numeric_dtype(column)


def _escaped(text: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in text)
