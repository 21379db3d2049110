"""Engines of vLLM within the tests' process. `bash scripts/test-vllm` runs these tests where vLLM is installed."""

import os
from importlib.util import find_spec

import pytest

# read when vllm is imported; one process, so that a test sees the engine's errors
os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_LOGGING_LEVEL="ERROR",
    HF_HUB_OFFLINE="1",
)

collect_ignore_glob = [] if find_spec("vllm") else ["test_*.py"]


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """The path of a folder that holds a tiny model of a family, or SmolLM2; written once."""
    from tests.engines.vllm.engines import written

    made = {}

    def folder(family: str) -> str:
        if family not in made:
            made[family] = written(family, tmp_path_factory.mktemp(family))
        return made[family]

    return folder
