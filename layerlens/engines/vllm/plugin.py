"""What is put into vLLM's registries when a process of vLLM starts."""

import logging
import os
import signal
from dataclasses import dataclass
from typing import Any

from packaging.specifiers import SpecifierSet
from torch import nn
from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
from vllm.v1.worker.worker_base import WorkerBase

from layerlens.engines.vllm.options import OWNER
from layerlens.models.vllm_versions import VERSIONS, installed

_logger = logging.getLogger("vllm.layerlens")


@dataclass(frozen=True)
class Registered:
    """A model of vLLM's registry whose class is watched once it is loaded."""

    stock: Any

    def inspect_model_cls(self) -> Any:
        """What the model can do: the same as vLLM's own."""
        return self.stock.inspect_model_cls()

    def load_model_cls(self) -> type[nn.Module]:
        """The class, which makes vLLM's own model in an engine without layerlens."""
        from layerlens.engines.vllm.model import watched

        return watched(self.stock.load_model_cls())


def install() -> None:
    """Watch all models, check all engines, and let workers give out records. Calling it again changes nothing."""
    _leave_interrupts_to_the_owner()
    found = installed()
    if found is None or found not in SpecifierSet(VERSIONS, prereleases=True):
        _logger.warning("layerlens works with vLLM %s; this is %s, and layerlens stays off.", VERSIONS, found)
        return
    for architecture, stock in ModelRegistry.models.items():
        if not isinstance(stock, Registered):
            ModelRegistry.models[architecture] = Registered(stock)
            MODELS_CONFIG_MAP[architecture] = _checked(MODELS_CONFIG_MAP.get(architecture, VerifyAndUpdateConfig))
    WorkerBase.layerlens_take = _take


def _leave_interrupts_to_the_owner() -> None:
    """Ctrl-C in a terminal reaches all processes at once. Those of an engine that ended by themselves would answer what
    their owner has asked with an error, and print their tracebacks."""
    owner = os.environ.get(OWNER)
    if owner is not None and owner != str(os.getpid()) and hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _checked(stock: type) -> type:
    """The update of an architecture's config, after which the engine is checked."""

    class Checked(stock):  # type: ignore[misc]
        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            from layerlens.engines.vllm.checks import check

            stock.verify_and_update_config(vllm_config)  # type: ignore[attr-defined]
            check(vllm_config)

    return Checked


def _take(worker: Any, ids: list[str] | None = None, next_ids: dict[str, int] | None = None) -> dict[str, Any]:
    """The records of these requests, or of all, from a worker; of several ranks the first one tells them, and the
    others, which have the same, forget theirs."""
    from layerlens.engines.vllm.serving import here, is_on

    if here.serving is None or not is_on(worker.vllm_config):
        return {}
    found = here.serving.take(ids, next_ids)
    return found if worker.rank == 0 else {}
