"""Write Table 8 (what kinds of words are substituted) from a run directory: csv, Markdown and LaTeX.

python analyses/table8.py RUN OUT_DIR
"""

import argparse
from pathlib import Path

from layerlens.errors import LayerlensError
from layerlens.run import open_run
from layerlens.tables import TITLES, composed, save

parser = argparse.ArgumentParser(description="Write Table 8 from a run directory.")
parser.add_argument("run", type=Path, help="the run directory")
parser.add_argument("out_dir", type=Path, help="where table8.csv, table8.md and table8.tex go")

if __name__ == "__main__":
    options = parser.parse_args()
    try:
        paths = save(composed("8", open_run(options.run)), TITLES["8"], options.out_dir, "table8")
    except LayerlensError as error:
        parser.error(str(error))
    print(*paths, sep="\n")
