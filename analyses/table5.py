"""Write Table 5 (what decoding from the valley costs) from a run directory: csv, Markdown and LaTeX.

python analyses/table5.py RUN OUT_DIR
"""

import argparse
from pathlib import Path

from layerlens.errors import LayerlensError
from layerlens.run import open_run
from layerlens.tables import TITLES, composed, save

parser = argparse.ArgumentParser(description="Write Table 5 from a run directory.")
parser.add_argument("run", type=Path, help="the run directory")
parser.add_argument("out_dir", type=Path, help="where table5.csv, table5.md and table5.tex go")

if __name__ == "__main__":
    options = parser.parse_args()
    try:
        paths = save(composed("5", open_run(options.run)), TITLES["5"], options.out_dir, "table5")
    except LayerlensError as error:
        parser.error(str(error))
    print(*paths, sep="\n")
