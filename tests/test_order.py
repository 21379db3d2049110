"""Imports go one way, in the order that CONTRIBUTING gives, and no modules import each other in a circle."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def order() -> list[str]:
    """The packages and modules at the top of `layerlens`, lowest first, as CONTRIBUTING lists them."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = re.search(r"^\*\*The order\.\*\*(?s:.*?)\n\n((?: {4}.*\n)+)", text, re.MULTILINE)
    assert listed, "CONTRIBUTING has no list after **The order.**"
    return re.findall(r"^ {4}(\w+)", listed[1], re.MULTILINE)


def modules(root: Path) -> dict[str, Path]:
    """Every module below `layerlens`, by its dotted name; a package is named by its folder."""
    found = {}
    for path in (root / "layerlens").rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of layerlens that a file imports: at its head, inside a function, or for the type checker alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if node.module in known:
                    yield inner if inner in known else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)


def top(module: str) -> str:
    """The package or module at the top of `layerlens` that a module belongs to; "" for `layerlens` itself."""
    return module.split(".")[1] if "." in module else ""


def upward(root: Path) -> list[tuple[str, str]]:
    """Imports of what stands above the importing module in the order; of the public names only the command line may."""
    places: dict[str, float] = {name: place for place, name in enumerate(order())}
    known = modules(root)
    places[""] = len(places) - 1.5
    pairs = [(name, other) for name, path in known.items() for other in imports(path, known)]
    return [(name, other) for name, other in pairs if top(name) in places and places[top(other)] > places[top(name)]]


def circle(root: Path) -> list[str]:
    """Modules that import one another, the first of them twice; none where there are none."""
    known = modules(root)
    graph = {name: {other for other in imports(path, known) if other != name} for name, path in known.items()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def test_the_order_names_everything_that_is_there():
    assert {top(name) for name in modules(ROOT)} - {"", "__main__"} == set(order())


def test_no_import_points_up():
    assert upward(ROOT) == []


def test_there_is_no_circle():
    assert circle(ROOT) == []


@pytest.mark.parametrize(
    ("importer", "line", "imported"),
    [
        ("records.schema", "from layerlens.analysis import layers", "analysis.layers"),
        ("analysis.layers", "def later():\n    from layerlens.run import Run", "run"),
        ("decode.scan", "def later():\n    import layerlens as ll", ""),
        ("lens.sums", "if TYPE_CHECKING:\n    from layerlens import tracing", "tracing"),
    ],
)
def test_an_import_that_points_up_is_found(tmp_path, importer, line, imported):
    copied(tmp_path)
    path = modules(tmp_path)[f"layerlens.{importer}"]
    path.write_text(f"{path.read_text(encoding='utf-8')}\n\n{line}\n", encoding="utf-8")
    assert upward(tmp_path) == [(f"layerlens.{importer}", f"layerlens.{imported}".rstrip("."))]


def test_a_circle_is_found(tmp_path):
    copied(tmp_path)
    path = tmp_path / "layerlens" / "records" / "schema.py"
    path.write_text(f"from layerlens.records import reader\n{path.read_text(encoding='utf-8')}", encoding="utf-8")
    assert {"layerlens.records.schema", "layerlens.records.reader"} <= set(circle(tmp_path))


def copied(to: Path) -> None:
    """Every module, in a folder of its own."""
    for path in modules(ROOT).values():
        target = to / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
