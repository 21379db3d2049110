"""Which files the tests of layerlens inside vLLM depend on, and whether they have changed since the tests passed.

python tests/engines/vllm/passed.py [--write]

Ends with status 1 and names the changed files where there are any. It needs no package but Python's own.
"""

import ast
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PASSED = Path(__file__).with_name("passed.txt")
SCRIPT = ROOT / "scripts" / "test-vllm"


def main() -> int:
    """The exit status: 0 where nothing has changed."""
    now = digests()
    if "--write" in sys.argv:
        PASSED.write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(now.items())), encoding="utf-8")
        return 0
    listed = PASSED.read_text(encoding="utf-8") if PASSED.exists() else ""
    before = {name: digest for digest, name in (line.split("  ", 1) for line in listed.splitlines())}
    changed = sorted(name for name in before | now if before.get(name) != now.get(name))
    if not changed:
        print("tests/engines/vllm: nothing has changed that they depend on since they passed; not run")
        return 0
    more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
    print(f"tests/engines/vllm: run, because of changes in {', '.join(changed[:5])}{more}")
    return 1


def digests() -> dict[str, str]:
    """SHA-256 of the plugin with every module that it imports, and of its tests and the script that runs them.

    The tests also load models and read them with our own loop, which other tests are about.
    """
    waiting = [*(ROOT / "layerlens" / "engines").rglob("*.py"), *Path(__file__).parent.rglob("*.py")]
    files = {SCRIPT}
    while waiting:
        path = waiting.pop()
        if path not in files:
            files.add(path)
            waiting += imported(path)
    return {path.relative_to(ROOT).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def imported(path: Path) -> list[Path]:
    """The files beside a module, in the same folder at the top of the project, that it imports when it runs."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in tree.body:
        for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        names |= set() if for_types else set(named(node))
    found = []
    for name in names:
        place = ROOT.joinpath(*name.split("."))
        found += [file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()]
    return [file for file in found if file.relative_to(ROOT).parts[0] == path.relative_to(ROOT).parts[0]]


def named(tree: ast.AST) -> Iterator[str]:
    """What can be modules among the imports within a part of a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{one.name}" for one in node.names)
        elif isinstance(node, ast.Import):
            yield from (one.name for one in node.names)


if __name__ == "__main__":
    sys.exit(main())
