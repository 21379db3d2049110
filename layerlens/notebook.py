"""How runs and models are shown in notebooks."""

from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Framed:
    """A page of its own inside a notebook.

    Attributes:
        page: the HTML.
        height: in pixels.
    """

    page: str
    height: int

    def __repr__(self) -> str:
        return f"a page of {len(self.page) / 2**20:.1f} MB; notebooks show it"

    def _repr_html_(self) -> str:
        look = f"width:100%;height:{self.height}px;border:1px solid #8886;border-radius:6px"
        # without allow-same-origin the page can reach neither the notebook nor its storage
        return f'<iframe sandbox="allow-scripts" style="{look}" srcdoc="{escape(self.page)}"></iframe>'


def as_html(text: str) -> str:
    """A few lines of text, the first of them bold, with every sign shown as it is."""
    first, *rest = text.splitlines()
    lines = "".join(f"<div>{escape(line.strip())}</div>" for line in rest)
    return f'<div style="line-height:1.5"><b>{escape(first)}</b>{lines}</div>'
