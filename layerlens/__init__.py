"""Watch what every layer of a language model does to every token, and how sure it would be if it stopped there."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerlens import plots as plot
    from layerlens.datasets import Dataset, Prompt, dataset, read_prompts
    from layerlens.decode.contrast import SLED, DoLa
    from layerlens.decode.dropin import decoding
    from layerlens.decode.log import DecodingLog
    from layerlens.decode.loop import Generation, generate
    from layerlens.decode.options import GenerateOptions
    from layerlens.decode.readouts import Readouts
    from layerlens.decode.registry import named_strategy, register_strategy
    from layerlens.decode.speculative.clasp import Clasp
    from layerlens.decode.speculative.conflayers import ConfLayers
    from layerlens.decode.speculative.drafter import Drafter
    from layerlens.decode.speculative.fixed import EveryOther, FixedSkip, Traced
    from layerlens.decode.speculative.knapspec import KnapSpec
    from layerlens.decode.speculative.policy import Search, SkipPolicy
    from layerlens.decode.speculative.registry import named_skip_policy, register_skip_policy
    from layerlens.decode.speculative.skipset import SkipSet
    from layerlens.decode.speculative.swift import Swift
    from layerlens.decode.strategies import Choice, Fixed, Last, Strategy, Valley
    from layerlens.errors import LayerlensError, ModelError, OptionError, PromptError, RunError
    from layerlens.evaluation.ablation import ablate
    from layerlens.evaluation.evaluate import evaluate
    from layerlens.fitting.fit import fit_lens
    from layerlens.fitting.fitted import Fitted
    from layerlens.lens.opening import open_lens
    from layerlens.lens.transport import Transport
    from layerlens.models import Model, load
    from layerlens.run import Run, merge, open_run
    from layerlens.tracing.options import TraceOptions
    from layerlens.tracing.tracer import trace

__all__ = [
    "SLED",
    "Choice",
    "Clasp",
    "ConfLayers",
    "Dataset",
    "DecodingLog",
    "DoLa",
    "Drafter",
    "EveryOther",
    "Fitted",
    "Fixed",
    "FixedSkip",
    "GenerateOptions",
    "Generation",
    "KnapSpec",
    "Last",
    "LayerlensError",
    "Model",
    "ModelError",
    "OptionError",
    "Prompt",
    "PromptError",
    "Readouts",
    "Run",
    "RunError",
    "Search",
    "SkipPolicy",
    "SkipSet",
    "Strategy",
    "Swift",
    "TraceOptions",
    "Traced",
    "Transport",
    "Valley",
    "ablate",
    "dataset",
    "decoding",
    "evaluate",
    "fit_lens",
    "generate",
    "load",
    "merge",
    "named_skip_policy",
    "named_strategy",
    "open_lens",
    "open_run",
    "plot",
    "read_prompts",
    "register_skip_policy",
    "register_strategy",
    "trace",
]

_HOMES = {
    "layerlens.datasets": ("Dataset", "Prompt", "dataset", "read_prompts"),
    "layerlens.decode.contrast": ("DoLa", "SLED"),
    "layerlens.decode.dropin": ("decoding",),
    "layerlens.decode.log": ("DecodingLog",),
    "layerlens.decode.loop": ("Generation", "generate"),
    "layerlens.decode.registry": ("named_strategy", "register_strategy"),
    "layerlens.decode.options": ("GenerateOptions",),
    "layerlens.decode.readouts": ("Readouts",),
    "layerlens.decode.speculative.clasp": ("Clasp",),
    "layerlens.decode.speculative.conflayers": ("ConfLayers",),
    "layerlens.decode.speculative.drafter": ("Drafter",),
    "layerlens.decode.speculative.fixed": ("EveryOther", "FixedSkip", "Traced"),
    "layerlens.decode.speculative.knapspec": ("KnapSpec",),
    "layerlens.decode.speculative.policy": ("Search", "SkipPolicy"),
    "layerlens.decode.speculative.registry": ("named_skip_policy", "register_skip_policy"),
    "layerlens.decode.speculative.skipset": ("SkipSet",),
    "layerlens.decode.speculative.swift": ("Swift",),
    "layerlens.decode.strategies": ("Choice", "Fixed", "Last", "Strategy", "Valley"),
    "layerlens.errors": ("LayerlensError", "ModelError", "OptionError", "PromptError", "RunError"),
    "layerlens.evaluation.ablation": ("ablate",),
    "layerlens.evaluation.evaluate": ("evaluate",),
    "layerlens.fitting.fit": ("fit_lens",),
    "layerlens.fitting.fitted": ("Fitted",),
    "layerlens.lens.opening": ("open_lens",),
    "layerlens.lens.transport": ("Transport",),
    "layerlens.models": ("Model", "load"),
    "layerlens.run": ("Run", "merge", "open_run"),
    "layerlens.tracing.options": ("TraceOptions",),
    "layerlens.tracing.tracer": ("trace",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used: opening a run must not wait for torch."""
    if name == "plot":
        return import_module("layerlens.plots")
    if name in _HOME_OF:
        return getattr(import_module(_HOME_OF[name]), name)
    # with the module, so that Python suggests the name that was meant
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])


def __dir__() -> list[str]:
    return [*globals(), *__all__]
