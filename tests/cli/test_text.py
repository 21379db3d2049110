"""Texts and tables on standard output: all of what they hold, on a pipe and on a terminal."""

import io
import re
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
from rich.table import Table

from layerlens.cli.grids import print_table
from layerlens.cli.text import counts, print_generation, print_side_by_side
from layerlens.decode.loop import Generation

TEXTS = {
    "plain": "Hello there",
    "long": "a  b " * 60 + "x" * 300 + "   ",
    "markup": "[bold]x[/bold] :smile: [red \\[/nothing] [link=a]b",
    "controls": "a\rb\x1b[31mred\x1b[0m\x07\x08\x0b\x0c\x7f\x9b",
    "white space": "  one\ttwo\n\n    three \n",
    "wide": "没有🙂" * 40,
    "empty": "",
}


class Letters:
    """A tokenizer whose ids are code points."""

    unk_token, unk_token_id = None, None

    def convert_ids_to_tokens(self, token_id):
        return chr(token_id)

    def decode(self, token_ids, **_):
        return "".join(map(chr, token_ids))


class Terminal(io.StringIO):
    def isatty(self):
        return True


MODEL = SimpleNamespace(tokenizer=Letters(), n_layers=4)


def generated(text, changed=()):
    """A generation of this text whose tokens at some places were "#" for the last layer."""
    ids = [ord(letter) for letter in text]
    steps = pd.DataFrame(
        {
            "next_token_id": ids,
            "last_token_id": [ord("#") if place in changed else one for place, one in enumerate(ids)],
            "selected_layer": [3 if place in changed else 4 for place in range(len(ids))],
            "projections": 1,
        }
    )
    return Generation("", text, ids, "length", steps)


def printed(monkeypatch, stream, show, *arguments):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "dumb")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        show(*arguments, **({} if show is print_table else {"sampled": False}))
    return stream.getvalue()


def counted(name, generation):
    return counts(MODEL, name, generation, sampled=False) + "\n"


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_pipe_gets_the_text_as_it_is(text, monkeypatch):
    found = generated(text)
    out = printed(monkeypatch, io.StringIO(), print_generation, MODEL, "last", found)
    assert out == f"{text}\n\n{counted('last', found)}"
    two = printed(monkeypatch, io.StringIO(), print_side_by_side, MODEL, "last", found, "[b]", found)
    notes = f"the texts are equal\n{counted('last', found)}{counted('[b]', found)}"
    assert two == f"last\n{text}\n\n[b]\n{text}\n\n{notes}"


def test_a_pipe_gets_the_marks_too(monkeypatch):
    found = generated("ab[i]c\nd", changed={1, 6})
    out = printed(monkeypatch, io.StringIO(), print_generation, MODEL, "valley", found)
    legend = "⟦last layer's token -> emitted token⟧\n"
    assert out == f"a⟦# -> b⟧[i]c⟦# -> ⏎⟧d\n\n{counted('valley', found)}{legend}"


class Ascii(io.TextIOWrapper):
    """Standard output in an encoding without the brackets that are preferred."""

    def __init__(self):
        super().__init__(io.BytesIO(), "ascii", "backslashreplace")

    def getvalue(self):
        self.flush()
        return self.buffer.getvalue().decode("ascii")


@pytest.mark.parametrize(
    ("text", "stream", "opening", "closing"),
    [
        ("a[b]c", io.StringIO, "⟦", "⟧"),
        ("a⟦b⟧c", io.StringIO, "⟪", "⟫"),
        ("a⟧⟪⦃«c", io.StringIO, "<<", ">>"),
        ("a[b]c", Ascii, "<<", ">>"),
        ("a<<b>>c", Ascii, "<<<", ">>>"),
        ("a⟦b⟧c", Terminal, "⟪", "⟫"),
    ],
)
def test_a_mark_stands_in_brackets_that_the_text_does_not_hold(text, stream, opening, closing, monkeypatch):
    found = generated(text, changed={0})
    out = printed(monkeypatch, stream(), print_generation, MODEL, "valley", found)
    first = out.splitlines()[0]
    assert first.startswith(f"{opening}# -> a{closing}")
    assert first.count(opening) == first.count(closing) == 1
    assert out.splitlines()[-1] == f"{opening}last layer's token -> emitted token{closing}"


def test_the_last_layers_token_counts_as_text_too(monkeypatch):
    found = generated("ab", changed={1})
    found.steps.loc[1, "last_token_id"] = ord("⟦")
    out = printed(monkeypatch, io.StringIO(), print_generation, MODEL, "valley", found)
    assert out.startswith("a⟪⟦ -> b⟫\n")


def test_a_terminal_shows_marks_in_colour(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        print_generation(MODEL, "valley", generated("ab", changed={1}), sampled=False)
    line = stream.getvalue().splitlines()[0]
    coloured = re.findall(r"\x1b\[([\d;]+)m([^\x1b]+)", line)
    assert coloured == [
        ("33", "⟦"),
        ("31", "#"),
        ("33", " -> "),
        ("1;32", "b"),
        ("33", "⟧"),
    ]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_terminal_shows_all_of_the_text(text, monkeypatch):
    seen = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda control: rf"\x{ord(control[0]):02x}", text)
    found = generated(text)
    out = printed(monkeypatch, Terminal(), print_generation, MODEL, "last", found)
    assert out == f"{seen}\n\n{counted('last', found)}".expandtabs(8)
    columns = printed(monkeypatch, Terminal(), print_side_by_side, MODEL, "last", found, "other", generated(""))
    column, _, notes = columns.removeprefix(columns.splitlines()[0]).partition("\nthe first 0 tokens are equal\n")
    assert "".join(column.split()) == "".join(seen.split()) or not text
    assert notes == counted("last", found) + counted("other", generated("")) or not text


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_table_keeps_every_cell_whole(stream, monkeypatch):
    cells = ["[bold]name", "x" * 50, ":smile: 1,234,567.25 [0, 1]"]
    table = Table("a", "b", "c", box=None)
    table.add_row(*cells)
    out = printed(monkeypatch, stream(), print_table, table)
    assert out.splitlines()[1].split() == " ".join(cells).split()
    assert len(out.splitlines()) == 2
