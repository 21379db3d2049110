"""Draw Figure 1 (clouds of substituted tokens over the entropy by layer) from a run directory: picture and csv.

python analyses/figure1.py RUN OUT_DIR
"""

import argparse
from pathlib import Path

from layerlens.errors import LayerlensError
from layerlens.plots.clouds import figure1
from layerlens.plots.save import save
from layerlens.run import open_run

parser = argparse.ArgumentParser(description="Draw Figure 1 from a run directory.")
parser.add_argument("run", type=Path, help="the run directory")
parser.add_argument("out_dir", type=Path, help="where figure1.png, figure1.pdf and figure1.csv go")

if __name__ == "__main__":
    options = parser.parse_args()
    try:
        paths = save(*figure1(open_run(options.run)), options.out_dir, "figure1")
    except LayerlensError as error:
        parser.error(str(error))
    print(*paths, sep="\n")
