"""Draw Figure 4 (entropy by layer of perturbed and unperturbed tokens) from a run directory: picture and csv.

python analyses/figure4.py RUN OUT_DIR
"""

import argparse
from pathlib import Path

from layerlens.errors import LayerlensError
from layerlens.plots import draw
from layerlens.run import open_run

parser = argparse.ArgumentParser(description="Draw Figure 4 from a run directory.")
parser.add_argument("run", type=Path, help="the run directory")
parser.add_argument("out_dir", type=Path, help="where figure4.png, figure4.pdf and figure4.csv go")

if __name__ == "__main__":
    options = parser.parse_args()
    try:
        paths = draw(4, open_run(options.run), options.out_dir)
    except LayerlensError as error:
        parser.error(str(error))
    print(*paths, sep="\n")
