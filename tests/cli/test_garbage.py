"""The command line has Python look for garbage rarely; the library leaves that alone."""

import ast
import gc
import subprocess
import sys
from pathlib import Path

import pytest

import layerlens as ll
from layerlens.cli.garbage import collect_rarely
from layerlens.models import tiny_model, tiny_tokenizer

ROOT = Path(ll.__file__).parent


@pytest.fixture
def threshold():
    """Python's own, whatever ran before."""
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*before)


@pytest.mark.parametrize(("before", "after"), [(700, 100_000), (2_000, 100_000), (200_000, 200_000), (0, 0)])
def test_a_command_collects_rarely_and_never_oftener_than_before(threshold, before, after):
    gc.set_threshold(before, 9, 8)
    collect_rarely()
    assert gc.get_threshold() == (after, 9, 8)


def test_every_command_does_so():
    program = """
import gc, sys
from layerlens.cli import main
sys.argv = ["layerlens", "--version"]
try:
    main()
except SystemExit as ended:
    assert ended.code == 0
print(gc.get_threshold()[0])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "100000"


@pytest.mark.parametrize("is_on", [True, False])
def test_loading_leaves_the_collector_alone(threshold, monkeypatch, tiny_folder, is_on):
    folder, on = tiny_folder("llama"), gc.isenabled()
    (gc.enable if is_on else gc.disable)()
    try:
        with monkeypatch.context() as patched:
            for name in ("disable", "enable", "set_threshold", "freeze", "collect"):
                patched.setattr(gc, name, lambda *_, name=name: pytest.fail(f"gc.{name} was called"))
            ll.load(folder)
            ll.load(tiny_model("llama"), tokenizer=tiny_tokenizer())
        assert (gc.isenabled(), gc.get_threshold()) == (is_on, (700, 10, 10))
    finally:
        (gc.enable if on else gc.disable)()


def test_the_library_never_names_it():
    naming = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import) and any(alias.name == "gc" for alias in node.names):
                naming.add(path.relative_to(ROOT).as_posix())
            if isinstance(node, ast.ImportFrom) and node.module == "gc":
                naming.add(path.relative_to(ROOT).as_posix())
    assert {name for name in naming if not name.startswith(("cli/", "bench/"))} == set()
