"""Draw Figure 3 (accuracy of arms against p) from the directory of an ablation: picture and csv.

python analyses/figure3.py ABLATION OUT_DIR
"""

import argparse
from pathlib import Path

from layerlens.errors import LayerlensError
from layerlens.plots.ablation import figure3
from layerlens.plots.save import save

parser = argparse.ArgumentParser(description="Draw Figure 3 from the directory of an ablation.")
parser.add_argument("ablation", type=Path, help="the directory that layerlens ablate wrote")
parser.add_argument("out_dir", type=Path, help="where figure3.png, figure3.pdf and figure3.csv go")

if __name__ == "__main__":
    options = parser.parse_args()
    try:
        paths = save(*figure3(options.ablation), options.out_dir, "figure3")
    except LayerlensError as error:
        parser.error(str(error))
    print(*paths, sep="\n")
