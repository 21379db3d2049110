"""Whether a model that is used again is still the one that was loaded and checked."""

from collections.abc import Sequence

import torch
from torch import Tensor

from layerlens.errors import ModelError, OptionError, spelled
from layerlens.models.changes import changes, in_training, note_numbers
from layerlens.models.check_parts import decoder_is_enough
from layerlens.models.check_readout import readout_holds
from layerlens.models.hooks import watch_blocks
from layerlens.models.model import Model
from layerlens.models.probing import Streams, probe
from layerlens.models.refusals import refuse_unobservable


def still_as_loaded(
    model: Model, *, may_be_compiled: bool = False, may_be_remote: bool = False, may_decode_elsewhere: bool = False
) -> None:
    """Refuse a model whose readings would not be its own. Such a model was changed, after it was loaded and checked, in
    something that its readings depend on, or it is in training mode or compiled. Where weights are needed, also refuse
    a model whose weights are not here.

    Changes inside blocks are allowed, and are measured. A change around the blocks is accepted once a short pass has
    shown that the readout still gives the model's own logits.

    Raises:
        ModelError: says what has changed.
        OptionError: the weights are on a server.
    """
    if not model.backend.is_here:
        if may_be_remote or (may_decode_elsewhere and model.backend.home is not None):
            model.backend.refuse_absent()
            return
        what = f"leaves the weights of {model.source} on a server, and this decodes here"
        advice = f"load it with {spelled('backend', 'transformers')}"
        raise OptionError.about("backend", model.backend.name, what, advice)
    if not may_be_compiled:
        refuse_unobservable(model.hf, model.source)
    fixed, watched = changes(model)
    if fixed:
        raise _changed(model, fixed)
    if in_training(model.hf):
        names = [name for name, module in model.hf.named_modules() if module.training]
        what = f"{model.source} is" if model.hf.training else f"{names[0]} of {model.source} is"
        raise ModelError(
            f"{what} in training mode, where dropout is on", "call model.hf.eval() first", given=model.source
        )
    if watched:
        if not _still_holds(model):
            raise _changed(model, watched)
        note_numbers(model)


def _changed(model: Model, phrases: Sequence[str]) -> ModelError:
    more = f" (and {len(phrases) - 2} more)" if len(phrases) > 2 else ""
    return ModelError(
        f"{model.source} was changed after it was loaded: {', '.join(phrases[:2])}{more}",
        "undo that, or load it as it is now: ll.load(model.hf, tokenizer=model.tokenizer)",
        given=model.source,
    )


def _still_holds(model: Model) -> bool:
    """Whether the blocks run one after the other, and the readout of the last one gives the model's own logits."""
    ids, order, streams = probe(model), [], Streams()

    def keep(index: int, h_in: Tensor, _: Tensor | None, h_out: Tensor) -> None:
        order.append(index)
        streams.append((h_in.to(h_out.device), None, h_out))

    with torch.no_grad(), watch_blocks(model.blocks, [None] * model.n_layers, keep):
        logits = model.hf(input_ids=ids, use_cache=False).logits
    if order != list(range(model.n_layers)):
        return False
    last = streams[-1][2]
    with torch.no_grad():
        return readout_holds(model, logits, last) and (model.decoder is model.hf or decoder_is_enough(model, ids, last))
