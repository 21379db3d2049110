"""The last number of a text against a reading sign by sign and hand-made cases."""

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerlens.evaluation.scoring import last_number

NUMBERS = [
    ("He makes $18 every day.", "18"),
    ("That is 2,125", "2125"),
    ("1,450,000 people", "1450000"),
    ("**Total: $1,450,000.00**", "1450000"),
    ("a loss of -10 dollars", "-10"),
    ("a loss of −$10.", "-10"),
    ("a loss of -$10.", "-10"),
    ("a loss of $-10.", "-10"),
    ("x = -3%", "-3"),
    ("It costs US$18.", "18"),
    (r"It costs HK\$1,800", "1800"),
    ("x is$5$", "5"),
    ("The answer is\n18", "18"),
    ("it is half: 0.5", "1/2"),
    ("it is 1/2.", "0.5"),
    ("it is .5", "0.50"),
    (r"it is $\frac{1}{2}$", "0.5"),
    (r"it is $-\dfrac{3}{4}$", "-0.75"),
    (r"it is 2\frac{1}{2} hours", "2.5"),
    ("it takes 2 1/2 hours", "2.5"),
    (r"\boxed{10,\!080}", "10080"),
    (r"\boxed{10{,}080}", "10080"),
    ("10-12 hours", "12"),
    ("5-3", "3"),
    ("(7)-2", "2"),
    ("so --5", "5"),
    ("first 1, 2, 3", "3"),
    ("12345,678", "678"),
    ("1,23", "23"),
    ("on the 3rd", "3"),
    ("50%", "50"),
    ("16/2=8", "8"),
    ("2.0", "2"),
    ("007", "7"),
    ("v1.2.3", "3"),
    ("18.", "18"),
    ("-0", "0"),
    ("line 5\n1/2", "0.5"),
    ("the 4\u202f000", "4000"),
    ("the 4\u00a0000\u00a0000", "4000000"),
    (r"$11,\! 111,\! 111,\! 100$", "11111111100"),
    (r"$1\,234\,567$", "1234567"),
    (r"$10\ 080$", "10080"),
    (r"$10\text{,}080$", "10080"),
    (r"$1,\ 200$", "200"),
    ("0,500", "500"),
    (r"\boxed{\frac12}", "1/2"),
    (r"\boxed{\frac1{2}}", "1/2"),
    (r"\boxed{\frac{1}2}", "1/2"),
    (r"\boxed{\frac 1 2}", "1/2"),
    (r"\boxed{-\tfrac34}", "-3/4"),
    (r"\boxed{\frac{-3}4}", "-3/4"),
    (r"\boxed{\frac{3}{-4}}", "-3/4"),
    (r"\boxed{\frac{−3}{4}}", "-3/4"),
    (r"\boxed{\frac{2.5}{5}}", "1/2"),
    (r"3\frac12", "7/2"),
    ("2.5/5", "1/2"),
    ("5 / 2", "5/2"),
    ("12 m^2", "12"),
    (r"12\text{ cm}^{3}", "12"),
    ("x_1 = 5, y_2", "5"),
    (r"90^\circ", "90"),
    ("5!", "5"),
    ("2^{10} = 1024", "1024"),
    ("12, not 13", "12"),
    ("12 and **not** $13", "12"),
    ("12 rather than 13", "12"),
    ("12, and neither 13 nor 14", "12"),
    ("It isn't 13 but 12", "12"),
    ("She did not eat 12 of them", "12"),
    ("12 fail", "12"),
    ("12 ≠ 13", "12"),
    (r"$12 \neq 13$", "12"),
    (r"12 \ne -13", "12"),
    ("12 != 13", "12"),
    (r"12 \not= 13", "12"),
    ("3½", "7/2"),
    ("3 ½ cups", "7/2"),
    ("-¾", "-3/4"),
    ("⅔ of it", "2/3"),
    ("1⁄8", "1/8"),
    ("12 cm3", "12"),
    ("12 m2.", "12"),
    ("5 m/s2", "5"),
    ("12 cm³", "12"),
    ("18 g of H2O and B12", "18"),
    ("10^3", "1000"),
    ("10^{3}$", "1000"),
    ("**10^3**", "1000"),
    ("10³", "1000"),
    ("10⁻²", "0.01"),
    (r"$2\cdot 10^3$", "2000"),
    (r"\boxed{2 \times 10^{-3}}", "0.002"),
    (r"-6.5\,\times\,10^{2}", "-650"),
    ("2*10^3", "2000"),
    ("2 x 10^−1", "0.2"),
    (r"1{,}200 × 10²", "120000"),
    ("1,200 × 10^2", "120000"),
    (r"$x \le5$", "5"),
    ("2e3", "2000"),
    ("1.5E-2", "0.015"),
    (r"2e2^\circ", "200"),
    ("$10^3 = 1000", "1000"),
    (r"\boxed{10,{\!}080}", "10080"),
    ("the 10 080", "10080"),
    ("the 1 000 500.5", "1000500.5"),
    ("in 2019 007", "7"),
    ("the 4 500", "500"),
    ("5!", "5"),
    ("**5!**", "5"),
    (r"\boxed{5}!", "5"),
    (r"\boxed{\text{it is }5}", "5"),
    (r"\boxed{\$5}\blacksquare", "5"),
    (r"\textcolor{blue}{5}", "5"),
    (r"\color{red} 5", "5"),
    (r"\pi \approx 5", "5"),
    (r"$\theta$ is 5", "5"),
    (r"\log_2 32 = 5", "5"),
    (r"\begin{array}{c} 5 \end{array}", "5"),
    (r"\pi \\ 5 \quad x", "5"),
    (r"5\,\Omega", "5"),
    (r"\left( 5 \right)", "5"),
    ("**Total** 5", "5"),
    ("**Total**5", "5"),
    ("8 tickets (5)", "5"),
    ("tickets(5)", "5"),
    ("2 * 5", "5"),
    ("a 2 x 5", "5"),
    ("a modest 5", "5"),
]


@pytest.mark.parametrize(("text", "reference"), NUMBERS)
def test_the_last_number(text, reference):
    assert last_number(text, reference)
    value = Fraction(reference)
    assert not last_number(text, str(value + 1))
    assert last_number(text, str(-value)) == (value == 0)
    assert not last_number(f"{text} or {value + 1}", reference)


@pytest.mark.parametrize("text", ["", "none", "-", "$", "1/0", r"\frac{1}{0}", "٣", "9" * 5000, "0." + "9" * 5000])
def test_what_is_no_number_equals_nothing(text):
    assert not last_number(text, text)
    assert not last_number(text, "9")
    assert not last_number("9", text)


def test_the_longest_number_that_is_read():
    """A thousand characters, signs and points included."""
    for longest in ("9" * 1000, "-" + "9" * 999, "." + "9" * 999, "9" * 500 + "/" + "7" * 499):
        assert last_number(f"It is {longest}.", longest)
        assert not last_number(f"It is {longest}9.", f"{longest}9")


PARTS = [
    ("10^3", "3"),
    ("10^3", "10"),
    ("2^{9}", "9"),
    ("2^{9}", "2"),
    ("2^3", "8"),
    ("9^n", "9"),
    ("2e9", "9"),
    ("2e1000", "1000"),
    ("2e+1000", "1000"),
    ("2E-1000", "1000"),
    ("2³", "2"),
    ("10^n", "10"),
    ("3,5·10^2", "3500"),
    ("2,10^2", "2100"),
    ("10^2,500", "100500"),
    ("10^2^2", "100"),
    ("2.10^2^2", "100"),
    (r"x \cdot 10^2", "100"),
    (r"3 \cdot 2 \cdot 10^2", "200"),
    (r"1.5 \times 10^{-9}", "-9"),
    ("H2O", "2"),
    ("CO₂", "2"),
    ("52₈", "52"),
    ("3½", "3"),
    ("12 cm3", "3"),
    (r"\sqrt{9}", "9"),
    (r"\sqrt9", "9"),
    (r"\sqrt[3]{9}", "9"),
    ("√9", "9"),
    ("sqrt(9)", "9"),
    (r"9\sqrt{x}", "9"),
    (r"9\pi", "9"),
    ("9π", "9"),
    (r"\frac{\pi}{9}", "9"),
    (r"\frac\pi9", "9"),
    (r"\frac{\sqrt{3}}{9}", "9"),
    (r"\frac{9}{x}", "9"),
    (r"\binom{10}{9}", "9"),
    ("x/9", "9"),
    ("(1+2)/9", "9"),
    ("52_9", "9"),
    (r"\binom92", "92"),
    (r"\nicefrac19", "19"),
    (r"\sfrac x9", "9"),
    (r"\log_2 9", "9"),
    (r"\log_{2}{9}", "9"),
    (r"\sin 9^\circ", "9"),
    (r"\gcd(12, 9)", "9"),
    (r"\operatorname{lcm}(3, 9)", "9"),
    (r"\lfloor 9 \rfloor", "9"),
    (r"\sqrt{b^{2} + 9}", "9"),
    (r"0.\overline{9}", "9"),
    (r"0.\bar9", "9"),
    ("0.(9)", "9"),
    ("0.9\u0305", "0.9"),
    (r"{1 \over 9}", "9"),
    (r"{9 \choose k}", "9"),
    (r"9\theta", "9"),
    (r"9 \cdot x", "9"),
    (r"\pm 9", "9"),
    ("±9", "9"),
    ("f(9)", "9"),
    ("f(x, 9)", "9"),
    ("2**9", "9"),
    ("x**9", "9"),
    ("2 ** 9", "9"),
    ("1÷9", "9"),
    ("9 ÷ x", "9"),
    ("3 × 9", "9"),
    ("12 mod 9", "9"),
    ("9 mod n", "9"),
    (r"12 \bmod 9", "9"),
    ("12 choose 9", "9"),
    (r"\boxed{9!}", "9"),
    ("$9!$", "9"),
    (r"\(9!\)", "9"),
    (r"\frac12 9", "9"),
]


@pytest.mark.parametrize(("text", "part"), PARTS)
def test_a_part_of_something_larger_is_not_its_value(text, part):
    assert not last_number(f"So it is {text}", part)
    assert last_number(f"So it is {text} = {part}", part)


@pytest.mark.parametrize("text", [r"7 and x \cdot 10^2", "7 and y × 10³", r"7 and \pi \cdot 10^{2}"])
def test_a_power_of_ten_in_a_product_hides_what_comes_before(text):
    assert not any(last_number(text, part) for part in ("7", "10", "2", "3", "100", "1000"))


@pytest.mark.parametrize("text", ["B9", "H2O9", "√9", "f(9)", "x/9", "2^9", "x_9", "not 9", "≠9", r"\pi 9", "±9"])
def test_what_comes_before_a_number_counts_from_the_first_sign_of_a_text(text):
    """And as far into a long one."""
    assert not last_number(text, "9")
    assert not last_number(120 * "long " + text, "9")


def plain_last_number(text):
    """The last number of a text without fractions or LaTeX, read sign by sign."""
    place, found = 0, None
    while place < len(text):
        sign = place
        if text[place] not in "0123456789":
            place += 1
            continue
        digits, glued = "", text[place - 1 : place].isalpha()
        while place < len(text) and text[place] in "0123456789":
            digits, place = digits + text[place], place + 1
        while len(digits.split(",")[0]) <= 3 and digits[0] != "0" and _is_group(text, place):
            digits, place = digits + text[place : place + 4], place + 4
        if text[place : place + 1] == "." and text[place + 1 : place + 2] in tuple("0123456789"):
            digits, place = digits + ".", place + 1
            while place < len(text) and text[place] in "0123456789":
                digits, place = digits + text[place], place + 1
        if glued:
            continue
        before = text[:sign].removesuffix("$")
        negative = before[-1:] in ("-", "−") and not re.fullmatch(r"[0-9A-Za-z)\]}%−-]", before[-2:-1] or " ")
        found = -Fraction(digits.replace(",", "")) if negative else Fraction(digits.replace(",", ""))
    return found


def _is_group(text, place):
    group = text[place : place + 5]
    return group[:1] == "," and group[1:4].isdigit() and len(group[1:4]) == 3 and not group[4:].isdigit()


@given(
    st.lists(
        st.one_of(
            st.sampled_from([" ", " ", "-", "−", "$", ",", ".", "%", "a", "is", "=", "(", ")", "\n"]),
            st.integers(0, 10**7).map(str),
            st.integers(0, 10**7).map(lambda number: f"{number:,}"),
            st.decimals(0, 1000, places=2).map(str),
        ),
        max_size=9,
    )
)
def test_the_last_number_as_read_sign_by_sign(parts):
    text = " ".join("".join(parts).split(" "))
    if re.search(
        r"(?<![0-9A-Za-z.])\.[0-9]|[0-9]{4},[0-9]{3}|,[0-9]{3},[0-9]{3}[0-9]|,[0-9]{4}| 0[0-9]{2}|[a.]\(", text
    ):
        return  # a number that begins with its point, commas that set off no groups, groups after a space, f(2): above
    value = plain_last_number(text)
    if value is None:
        assert not last_number(text, "5")
    else:
        assert last_number(text, str(value))
        assert not last_number(text, str(value + 1))
