"""The public door: what `__all__` says is true, lazily imported, documented."""

import dataclasses
import inspect
import subprocess
import sys

import pytest

import layerlens as ll
from layerlens.models import FAMILIES, tiny_names


@pytest.mark.parametrize("name", ll.__all__)
def test_every_public_name_is_there_and_documented(name):
    thing = getattr(ll, name)
    assert inspect.getdoc(thing)
    assert name in dir(ll)


def test_no_public_name_is_missing_from_all():
    """What type checkers are told, what is imported on first use, and `__all__` agree."""
    source = inspect.getsource(ll)
    told = source[source.index("if TYPE_CHECKING:") : source.index("__all__")]
    for name in ll.__all__:
        assert name in told
    assert set(ll._HOME_OF) | {"plot"} == set(ll.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = ll.nonsense


def test_importing_layerlens_imports_nothing_heavy():
    program = "import sys, layerlens; print(sorted({'torch', 'pandas', 'numpy', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    heavy = program.replace("layerlens;", "layerlens; layerlens.load;")
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert "torch" in done.stdout, "the check sees torch when it is imported"


def test_the_core_runs_without_the_optional_backends():
    """transformer-lens and nnsight are other doors to the same numbers; nothing here may need them."""
    program = (
        "import sys\n"
        "for name in ('transformer_lens', 'nnsight'): sys.modules[name] = None\n"
        "import layerlens as ll\n"
        "from layerlens.models import tiny_model, tiny_tokenizer\n"
        "print(ll.load(tiny_model('llama'), tokenizer=tiny_tokenizer()).n_layers)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "4", done.stderr


@pytest.mark.parametrize("options", [ll.TraceOptions, ll.Fixed, ll.Valley, ll.DoLa, ll.SLED])
def test_every_option_has_a_sentence(options):
    source = "".join(inspect.getsource(kind) for kind in options.__mro__ if dataclasses.is_dataclass(kind))
    for field in dataclasses.fields(options):
        after = source.split(f"    {field.name}: ")[1].splitlines()
        assert after[1].strip().lstrip('"'), field.name
        assert after[1].strip().startswith('"""'), field.name


def test_every_family_that_is_tested_in_full_is_in_the_table():
    assert set(tiny_names()) <= set(FAMILIES)
    assert {f"{name}_text" for name in ("qwen3_5", "qwen3_5_moe", "gemma3", "gemma4")} <= set(FAMILIES)
