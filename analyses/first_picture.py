"""Draw the picture at the beginning of the README: the answer of SmolLM2 about the capital of France, by layer.

python analyses/first_picture.py RUN [OUT.png]

The run is traced first:

    echo "What is the capital of France?" > prompts.txt
    layerlens trace --model smollm2-135m-instruct --prompts prompts.txt --max-new-tokens 24 --out RUN
"""

import sys

import layerlens as ll

LAYERS = range(19, 31)
TOKENS = 7


def draw(run: str, out: str) -> None:
    """Write the PNG: the last layers of the first tokens."""
    axes = ll.plot.lens_grid(ll.open_run(run), first=1, last=TOKENS, layers=list(LAYERS), width="one")
    figure = axes.get_figure()
    assert figure is not None
    for text in figure.texts:
        text.set_visible(False)
    figure.savefig(out, dpi=200, bbox_inches="tight", pad_inches=0.02)


if __name__ == "__main__":
    draw(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "docs/pictures/first.png")
