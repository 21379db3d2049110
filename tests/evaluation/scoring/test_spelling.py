"""Spellings of one answer, and answers that are not the same: hand-made, and random expressions by their values."""

import cmath
import math
import random

import pytest

from layerlens.evaluation.scoring import exact
from layerlens.evaluation.scoring.spelling import read, spelled_alike

SAME = [
    (r"\frac{1}{2}", r"\dfrac12"),
    (r"\frac{1}{2}", "0.5"),
    (r"\frac{1}{2}", "$1/2$"),
    (r"1\frac{4}{5}", "1.8"),
    ("58,500", "58500"),
    (".35625", "0.35625"),
    ("0", "0.0"),
    (r"90^\circ", "90°"),
    (r"90^\circ", r"90^{\circ}"),
    (r"\$18.90", "18.9"),
    (r"10\%", "10"),
    (r"5.4 \text{ cents}", "5.4"),
    (r"864 \mbox{ inches}^2", "864"),
    (r"\text{Evelyn}", "evelyn"),
    (r"\text{(C)}", "(C)"),
    ("x=5", "5"),
    (r"x \in [-2,7]", "[-2, 7]"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
    (r"11\sqrt2", r"11\sqrt{2}"),
    ("4210_{5}", "4210_5"),
    ("x^{2}+1", "x^2 + 1"),
    (r"\{1\pm\sqrt{5},-2\}", r"\{1 \pm \sqrt{5}, -2\}"),
    ("42.", "**42**"),
    (r"10,\!080", "10080"),
    (r"10,\!080", r"10\,080"),
    (r"10,\!080", "10 080"),
    (r"11,\! 111,\! 111,\! 100", "11{,}111{,}111{,}100"),
    (r"\$32,\!348", "32,348 dollars"),
    (r"\frac{270}7\text{ degrees}", r"\frac{270}{7}^\circ"),
    (r"137 \frac{1}{2}", r"\frac{275}2"),
    (r"\frac 59", r"\tfrac{5}{9}"),
    (r"\frac{\sqrt{3}}{3}", "√3/3"),
    (r"\frac{3\sqrt{3}}{4}", r"3 \cdot \sqrt3/4"),
    (r"-\frac{\pi}{6}", r"\frac{-\pi}{6}"),
    (r"\sqrt{51}", "sqrt(51)"),
    (r"288 \pi", "288 pi"),
    (r"\left(\frac{3}{5},\frac{8}{3}\right]", "(0.6, 8/3]"),
    (r"(-\infty, 2) \cup (3, \infty)", "(−∞,2)∪(3,+∞)"),
    (r"\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}", r"\begin{bmatrix}-\frac{1}{3}\\\frac23\end{bmatrix}"),
    (r"\cot x", r"\cot(x)"),
    (r"\text{(C)}", r"\textbf{C}"),
    ("3, 5, 7", r"x = 7, x = 5 \text{ or } x = 3"),
    ("1,-2", "-2 and 1"),
    (r"\{1\pm\sqrt{5},-2\}", r"\{-2, 1-\sqrt5, 1+\sqrt5\}"),
    (r"1 \pm \sqrt{19}", r"1 + \sqrt{19}, 1 - \sqrt{19}"),
    (r"15\mbox{ cm}^2", "15 square centimeters"),
    (r"864 \mbox{ inches}^2", r"864\text{ in}^2"),
    (".0000672", r"6.72 \times 10^{-5}"),
    ("2000", r"2\cdot 10^3"),
    ("0.002", r"2 \times 10^{-3}"),
    ("1000", "10^3"),
    (r"10^{3}\sqrt{2}", r"1000\sqrt2"),
    ("2e3", "2,000"),
    ("10⁻³", "0.001"),
    ("3½", r"\frac72"),
    ("½x", r"\frac{1}{2}x"),
    ("1⁄2", "0.5"),
    ("52₈", "52_8"),
    ("x¹⁰", "x^{10}"),
    ("x⁻²", "x^{-2}"),
    (r"\$4 2/3", r"\frac{14}{3}"),
    (r"\$11 111 111", "11111111"),
    (r"-\$5", "-5"),
    ("12 cm3", "12"),
    ("12 cm2", r"12\text{ cm}^2"),
    ("Jos\u00e9", "Jose\u0301"),
    ("x^{10}", "x^10"),
    (r"52_8", r"52_{8}"),
    ("x ∈ [-2,7]", "[-2, 7]"),
    (r"\begin{pmatrix} 1 \\[2pt] 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    (r"x=1,\quad y=2", "x=1, y=2"),
    ("x~+~1", "x+1"),
    ("x\u00a0+\u20091", "x+1"),
    ("“Evelyn”", "Evelyn"),
    ("*42*", "42"),
    (r"\cfrac{a}{2}", "a/2"),
    (r"S = \{1, 2\}", r"\{2, 1\}"),
    (r"x\sqrt(5)", r"x\sqrt{5}"),
    (r"x^\frac12", r"x^{\frac{1}{2}}"),
    (r"\exp(x)", r"\exp x"),
    ("3, 5, and 7", "3, 5, 7"),
    ("x+1;", "x+1"),
    ("15 sq cm", r"15\text{ cm}^2"),
    ("15 cubic centimetres", "15 cm^3"),
    ("15 cm cubed", "15 cm^3"),
    ("15 square cm^2", "15 cm^2"),
    (r"f(x) = x + 1", "x+1"),
    (r"\angle ABC = 30^\circ", "30"),
    (r"\frac{(a+b)}{2}", r"\frac{a+b}{2}"),
    (r"\frac{1}{\sqrt{2}}", "1/√2"),
    (r"(-1,\frac{-1}{x})", r"(-1,-\frac{1}{x})"),
    ("1 200 300", "1200300"),
    (r"5\text{ cm}, 6\text{ m}", r"5\text{ cm}, 6"),
    ("{x}", "x"),
    (r"2x=\frac{-1}{y}", r"2x=-\frac{1}{y}"),
    (r"\frac{(f(a)+b)}{2}", r"\frac{f(a)+b}{2}"),
    (r"x^\frac{a}{b}", r"x^{\frac{a}{b}}"),
    ("x=" + "5" * 998, "5" * 998),
    (r"10,{\!}080", "10,080"),
    ("(1,080)", "1080"),
    (r"\{5, 1,080\}", "1080, 5"),
    ("(-1,000, 5)", "(-1000, 5)"),
    ("(1,234)", "(1, 234)"),
    ("(0,050)", "(0, 50)"),
    ("(2,3,004)", "(2, 3, 4)"),
]
OTHER = [
    ("(1,080)", "(1,80)"),
    ("[1,080]", "[1,80]"),
    ("(1,234)", "1234"),
    ("p - q", "q - p"),
    ("52_8", "52"),
    ("(3,4]", "[3,4]"),
    ("x", "X"),
    ("(1,-2)", "(-2,1)"),
    ("1 2", "12"),
    ("3*4", "34"),
    (r"\$1 1/2", r"\frac{11}{2}"),
    ("x²", "x2"),
    ("2^3", "8"),
    ("2,10^2", "2100"),
    ("10^2,500", "100500"),
    (r"x\cdot10^3", "1000"),
    ("12 cm3", "3"),
    ("12 cm3", r"12\text{ cm}^2"),
    ("12 ≠ 13", "13"),
    ("Jose\u0301", "Jose"),
    (r"2 \cdot \frac12", r"2\frac12"),
    (r"x^{2}\frac12", r"x^{\frac52}"),
    (r"\frac12 3", r"\frac{1}{23}"),
    (r"\frac{a}{2}b", r"\frac{a}{2b}"),
    (r"\frac{a+b}{2}", "a+b/2"),
    ("a/2/4", "a/1/2"),
    ("2/4!", "1/2!"),
    ("0,500", "500"),
    ("1, 200", "1200"),
    ("5, 6", "56"),
    (r"5\text{ or }6", "5"),
    (r"5\text{ million}", "5"),
    (r"5.4 \text{ cents}", r"5.4 \text{ dollars}"),
    (r"50\%", r"\$50"),
    (r"15\text{ cm}^2", r"15\text{ cm}^3"),
    (r"30^\circ", r"30\text{ radians}"),
    ("x=5", "y=5"),
    ("x = 1, y = 2", "x = 2, y = 1"),
    (r"1 \pm 2", "1+2"),
    (r"\{1, 2\}", "(1, 2)"),
    (r"1\ 2", "12"),
    ("2k+2", "2k"),
    (r"3\sqrt{13}", r"\sqrt{13}"),
    (r"\frac{3}{56}", r"\frac{56}{3}"),
    ("10", "100"),
    ("(1,200)", "1200"),
    (r"a \leftarrow b", r"a \rightarrow b"),
    ("1.125,500", "1.125500"),
    ("1,2345", "12345"),
    (r"5\text{ more}", "5"),
    (r"2\text{ dozen}", "2"),
    ("5 m n", "5"),
    ("1.2.03", "1.2.3"),
    (r"2\frac{3}{x}", r"\frac{23}{x}"),
    ("[5]", "5"),
    ("(x+1)(x+2)", "x+1)(x+2"),
    (r"\pm 1 \pm 2", "1+2, -1-2"),
    ("f(x)=5", "g(x)=5"),
    ("Xy2", "xy2"),
    ("1234 567", "1234567"),
    ("0.5!", "1/2!"),
    ("0.5^2", "1/2^2"),
    ("1.5_2", "3/2_2"),
    (r"\frac{1}{\sqrt{2}x}", "1/√2x"),
    (r"5\text{ cm}, 6\text{ m}", r"5\text{ m}, 6\text{ cm}"),
    ("x=" + "5" * 999, "5" * 999),
    ("", "5"),
    ("", ""),
    ("$", "%"),
]


@pytest.mark.parametrize(("left", "right"), SAME)
def test_spellings_of_one_answer(left, right):
    for text in (left, rf"Long talk of 7.\n So \(\boxed{{{left}}}\), as 9 < 10.", f"7\n\n{left}\n"):
        assert exact(text, right), text
    assert exact(f"The answer is {right}", left)


@pytest.mark.parametrize(("left", "right"), OTHER)
def test_other_answers_are_not_the_same(left, right):
    assert not exact(left, right)
    assert not exact(right, left)
    assert not exact(rf"so \boxed{{{left}}}, not {right}", right) or left == right


PLACES = {"x": 1.7324, "n": 0.6137}


def random_tree(draw, depth):
    """An expression as nested tuples: (kind, parts)."""
    kind = draw.choice(["int", "var", "pi", "root", "fraction", "power"])
    if depth:
        kind = draw.choice([kind, "sum", "product", "quotient", "minus", "root"])
    small = ("int", draw.randint(2, 12))
    if kind in ("int", "var", "pi"):
        return (kind, {"int": draw.randint(0, 12), "var": draw.choice("xn"), "pi": None}[kind])
    if kind in ("fraction", "power"):
        return (kind, small if kind == "fraction" else ("var", "x"), ("int", draw.randint(2, 12)))
    if kind == "product":
        return (kind, small, draw.choice([("pi", None), ("root", ("int", draw.randint(2, 13))), ("var", "x")]))
    if kind == "sum":
        return (kind, random_tree(draw, depth - 1), random_tree(draw, depth - 1), draw.choice("+-"))
    if kind == "root" and not depth:
        return (kind, small)
    n_parts = 2 if kind == "quotient" else 1
    return (kind, *(random_tree(draw, max(depth - 1, 0)) for _ in range(n_parts)))


def value_of(tree):
    kind, first, *rest = tree
    if kind in ("int", "var", "pi"):
        return {"int": first, "var": PLACES.get(first), "pi": math.pi}[kind]
    parts = [value_of(part) for part in (first, *rest) if isinstance(part, tuple)]
    if kind in ("fraction", "quotient"):
        return parts[0] / parts[1]
    if kind in ("root", "minus"):
        return cmath.sqrt(parts[0]) if kind == "root" else -parts[0]
    if kind == "sum":
        return parts[0] + parts[1] if rest[1] == "+" else parts[0] - parts[1]
    return parts[0] * parts[1] if kind == "product" else parts[0] ** parts[1]


def spelling_of(tree, draw):
    """One of the ways to write an expression, in LaTeX or without."""
    kind, first, *rest = tree
    if kind in ("int", "var", "pi"):
        return {"int": str(first), "var": first, "pi": draw.choice([r"\pi ", "π"])}[kind]
    parts = [spelling_of(part, draw) for part in (first, *rest) if isinstance(part, tuple)]
    gap = draw.choice(["", " "])
    if kind == "root":
        short = [rf"\sqrt{parts[0]}", f"√{parts[0]}", f" sqrt({parts[0]})"] if len(parts[0]) == 1 else []
        return draw.choice([rf"\sqrt{{{gap}{parts[0]}}}", *short])
    if kind in ("fraction", "quotient"):
        above, below = parts
        short = [rf"\frac {above}{{{below}}}"] if len(above) == 1 else []
        short += [rf"\frac{{{above}}}{gap}{below}"] if len(below) == 1 else []
        short += [rf"\frac{above}{below}"] if len(above + below) == 2 and above.isdigit() else []
        return draw.choice([rf"\dfrac{{{above}}}{{{below}}}", rf"\tfrac{{{gap}{above}}}{{{below}{gap}}}", *short])
    if kind == "sum":
        second = f"({parts[1]})" if rest[0][0] in ("sum", "minus") else parts[1]
        return f"{parts[0]}{gap}{rest[1]}{gap}{second}"
    if kind == "minus":
        return draw.choice("-−") + (f"({parts[0]})" if first[0] in ("sum", "minus") else parts[0])
    if kind == "power":
        return draw.choice([f"{parts[0]}^{gap}{parts[1]}", f"{parts[0]}^{{{parts[1]}}}"])
    return parts[0] + draw.choice(["", " ", r"\cdot ", r" \times ", "*", r"\,"]) + parts[1]


def test_all_spellings_of_an_expression_are_alike_and_none_of_another_value():
    draw, values = random.Random(0), {}
    for _ in range(6_000):
        tree = random_tree(draw, draw.randint(0, 2))
        try:
            value = complex(value_of(tree))
        except (ZeroDivisionError, OverflowError):
            continue
        one, other = spelling_of(tree, draw), spelling_of(tree, draw)
        assert spelled_alike(one, other), (one, other)
        earlier, said = values.setdefault(read(one), (value, one))
        assert cmath.isclose(earlier, value, rel_tol=1e-9), (said, one)
    assert len(values) > 1_500
