"""Draw Figure 7 (generated text as a grid of tokens) or one of 8 to 12, its further choices: picture and csv.

python analyses/figure7.py VALLEY_RUN OUT_DIR --last LAST_RUN
"""

import argparse
from pathlib import Path

from layerlens.errors import LayerlensError
from layerlens.plots.grids import figure_grid
from layerlens.plots.save import save
from layerlens.run import open_run

parser = argparse.ArgumentParser(description="Draw one of Figures 7 to 12 from one run directory or two.")
parser.add_argument("run", type=Path, help="the run decoded from the valley; alone, its substitutions are framed")
parser.add_argument("out_dir", type=Path, help="where figure7.png, figure7.pdf and figure7.csv go")
parser.add_argument("--last", type=Path, help="the run of the same prompts decoded from the last layer")
parser.add_argument("--number", type=int, default=7, choices=range(7, 13), help="7: the prompt with most substitutions")
parser.add_argument("--prompt", help="id of a prompt to draw instead")
parser.add_argument("--rule", default="place", help="by which tokens differ: place or alignment")

if __name__ == "__main__":
    options = parser.parse_args()
    try:
        last = open_run(options.last) if options.last else None
        figure = figure_grid(last, open_run(options.run), options.prompt, choice=options.number - 6, rule=options.rule)
        paths = save(*figure, options.out_dir, f"figure{options.number}")
    except LayerlensError as error:
        parser.error(str(error))
    print(*paths, sep="\n")
