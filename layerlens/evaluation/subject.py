"""What is evaluated, as inspect sees it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from inspect_ai.model import GenerateConfig
from inspect_ai.model import Model as InspectModel

from layerlens.compat import inspect_refusal
from layerlens.decode.modules import model_record
from layerlens.decode.strategies import Strategy
from layerlens.errors import LayerlensError
from layerlens.evaluation.inspect import layerlens as provider
from layerlens.lens.transport import Transport
from layerlens.models import Model


@dataclass(frozen=True)
class Subject:
    """What answers."""

    model: InspectModel
    parts: Mapping[str, Any]
    """Of the manifest: "model", and what else makes the answers what they are."""
    fit: Callable[[str, int], str]
    """See `Setting.fit`."""
    length: Callable[[str], int]
    """How many tokens a text has."""
    context: int | None
    """Tokens that fit into the model's context; None: unknown."""


@contextmanager
def loaded(
    model: Model, transport: Transport, batch_size: int, strategies: Sequence[Strategy], options: Mapping[str, Any]
) -> Iterator[Subject]:
    """A model from `load`, which decodes in a thread as long as this is open.

    Raises:
        OptionError: the model runs where no strategy can decode.
    """
    given: dict[str, Any] = {"loaded": model, "lens": transport, "batch_size": batch_size, "asked": strategies}
    try:
        api: Any = provider(model.source, **given, **options)
    except inspect_refusal() as error:
        if isinstance(error.__cause__, LayerlensError):  # which inspect would print
            raise error.__cause__ from None
        raise
    parts = {
        "model": model_record(model),
        "hardware": model.hardware(),
        "lens": transport.record(),
        "generation": {name: value for name, value in options.items() if value is not None},
    }
    try:
        yield Subject(
            InspectModel(api, GenerateConfig()),
            parts,
            lambda text, n_tokens: _without_middle(model.tokenizer, text, n_tokens),
            lambda text: len(model.tokenizer(text, add_special_tokens=False).input_ids),
            model.context_length,
        )
    finally:
        api.close()


def _without_middle(tokenizer: Any, text: str, n_tokens: int) -> str:
    """The text, or its first and last tokens where it has more than so many."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if len(ids) <= n_tokens:
        return text
    first = n_tokens // 2
    return str(tokenizer.decode(ids[:first])) + str(tokenizer.decode(ids[len(ids) - (n_tokens - first) :]))
