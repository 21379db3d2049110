"""Write the numbers of section 6.1 (what the valley does to tokens) from a run directory: csv, Markdown and LaTeX.

python analyses/table6_1.py RUN OUT_DIR
"""

import argparse
from pathlib import Path

from layerlens.errors import LayerlensError
from layerlens.run import open_run
from layerlens.tables import TITLES, composed, save

parser = argparse.ArgumentParser(description="Write the numbers of section 6.1 from a run directory.")
parser.add_argument("run", type=Path, help="the run directory")
parser.add_argument("out_dir", type=Path, help="where table6.1.csv, table6.1.md and table6.1.tex go")

if __name__ == "__main__":
    options = parser.parse_args()
    try:
        paths = save(composed("6.1", open_run(options.run)), TITLES["6.1"], options.out_dir, "table6.1")
    except LayerlensError as error:
        parser.error(str(error))
    print(*paths, sep="\n")
