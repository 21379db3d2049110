"""HTML made of elements, so that text can never become markup."""

import html
import re
from collections.abc import Mapping

_LONE_SURROGATES = re.compile("[\ud800-\udfff]")


class Markup(str):
    """Text that is HTML already. Only `element` and `join` make it, or it comes from files of this package."""


def element(name: str, *content: str, attributes: Mapping[str, str] | None = None) -> Markup:
    """An element around its content: `Markup` stays as it is, any other text is escaped.

    Args:
        name: the name of the element. It is written by us, and so are the attributes' names.
        content: what stands inside, in this order.
        attributes: attributes by name; their values are escaped.
    """
    given = "".join(f' {key}="{escaped(value)}"' for key, value in (attributes or {}).items())
    return Markup(f"<{name}{given}>{join(*content)}</{name}>")


def join(*content: str) -> Markup:
    """Pieces one after the other. Those that are not `Markup` are escaped."""
    return Markup("".join(piece if isinstance(piece, Markup) else escaped(piece) for piece in content))


def escaped(text: str) -> Markup:
    """The text with everything that could be read as markup escaped, and lone surrogates, which no file can hold, as
    U+FFFD."""
    return Markup(html.escape(_LONE_SURROGATES.sub("\ufffd", str(text)), quote=True))
