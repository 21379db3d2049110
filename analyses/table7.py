"""Write Table 7 (valley decoding by temperature and p) from ablations: csv, Markdown and LaTeX.

python analyses/table7.py ABLATION [ABLATION ...] OUT_DIR
"""

import argparse
from pathlib import Path

from layerlens.analysis.ablation import table7
from layerlens.errors import LayerlensError
from layerlens.tables.save import save

TITLE = "Accuracy of valley decoding by temperature and p, beside the paper's Table 7"

parser = argparse.ArgumentParser(description="Write Table 7 from ablations, each of one temperature.")
parser.add_argument("ablations", type=Path, nargs="+", help="directories that layerlens ablate wrote, with the valley")
parser.add_argument("out_dir", type=Path, help="where table7.csv, table7.md and table7.tex go")

if __name__ == "__main__":
    options = parser.parse_args()
    try:
        paths = save(table7(options.ablations), TITLE, options.out_dir, "table7")
    except LayerlensError as error:
        parser.error(str(error))
    print(*paths, sep="\n")
