"""What is evaluated, as inspect sees it: a model in this process, or one that a server of layerlens runs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from inspect_ai.model import GenerateConfig
from inspect_ai.model import Model as InspectModel

from layerlens.decode.modules import model_record
from layerlens.evaluation.inspect import layerlens as provider
from layerlens.lens.opening import open_lens
from layerlens.lens.transport import Transport
from layerlens.models import Model


@dataclass(frozen=True)
class Subject:
    """What answers."""

    model: InspectModel
    parts: Mapping[str, Any]
    """Of the manifest: "model", and what else makes the answers what they are."""
    request: Callable[[Mapping[str, Any]], dict[str, Any]]
    """The `extra_body` of a request under the options of an arm."""
    fit: Callable[[str, int], str] | None = None
    """See `Asking.fit`."""
    length: Callable[[str], int] = len
    """How many tokens a text has."""
    context: int | None = None


@contextmanager
def loaded(
    model: Model, lens: str | Transport | None, batch_size: int, options: Mapping[str, Any]
) -> Iterator[Subject]:
    """A model from `load`, which decodes in a thread as long as this is open."""
    transport = open_lens(lens, model)
    api: Any = provider(model.source, loaded=model, lens=transport, batch_size=batch_size, **options)  # type: ignore[call-arg]
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
            lambda arm: {"layerlens": dict(arm)},
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
