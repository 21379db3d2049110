"""`layerlens lm-eval`: lm-eval's own command line, with models whose logits a strategy chooses."""

import sys
from importlib.util import find_spec

import typer

from layerlens.errors import OptionError


def lm_eval(context: typer.Context) -> int:
    """Run lm-eval with a further model: --model layerlens.

    All arguments are lm-eval's. Those of the model are written like
    --model_args pretrained=MODEL,strategy=valley,window=10; see docs/evaluation.md.
    """
    if find_spec("lm_eval") is None:
        advice = "install layerlens[lm-eval]"
        raise OptionError("lm-eval is not installed", advice, given=context.args)
    from lm_eval.__main__ import cli_evaluate

    import layerlens.evaluation.lm_eval.model  # noqa: F401  (which registers the model)

    before, sys.argv = sys.argv, ["layerlens lm-eval", *context.args]
    try:
        cli_evaluate()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 2
    finally:
        sys.argv = before
    return 0
