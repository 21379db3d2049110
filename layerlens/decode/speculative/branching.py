"""Whether a model can read a tree of tokens in one pass."""

import torch

from layerlens.decode.forward import Forward
from layerlens.decode.prompts import pad, pad_token_id
from layerlens.errors import ModelError, first_sentence
from layerlens.models import Model

_TOLERANCE = {torch.float32: 5e-3, torch.float64: 5e-3, torch.float16: 3e-2}  # of the largest logit, for rounding


@torch.no_grad()
def refuse_recurrent(model: Model) -> None:
    """ModelError where tokens that were drafted cannot be taken out of what the model keeps of a text."""
    ids = torch.tensor([[min(3, model.n_known_tokens - 1)] * 4], device=model.device)
    forward = Forward(model, ids, torch.ones_like(ids), 1, static=False, rewinds=True)
    forward.prompts()
    if not forward.can_rewind:
        raise ModelError(
            f"{model.source} ({model.family}) cannot take drafted tokens back: it keeps a recurrence or a window of "
            "fixed size",
            "decode it without drafts",
            option="draft",
            given=model.source,
        )


@torch.no_grad()
def branching_fault(model: Model) -> str | None:
    """Why the model cannot read several continuations of a text in one pass; None where it can.

    Tried with a text of two continuations, against passes over each of them.
    """
    known = min(model.n_known_tokens, model.n_vocab)
    ids = torch.linspace(min(3, known - 1), known - 1, 9, dtype=torch.float64).long().tolist()
    texts, mask = pad([ids[:5], ids[1:4]], pad_token_id(model), left=True)

    def begun() -> Forward:
        forward = Forward(model, texts.to(model.device), mask.to(model.device), 4, static=False, rewinds=True)
        forward.prompts()
        return forward

    forward = begun()
    if not forward.can_rewind:
        return "it keeps a recurrence or a window of fixed size"
    if "chunked" in model.layer_kinds:
        return "it attends in chunks"
    branches = [[5, 6], [7, 8]]
    expected = []
    for branch in branches:
        with forward.aside():
            for place in branch:
                logits = forward.step(torch.tensor([[ids[place]]] * 2, device=model.device))
        expected.append(logits[:, 0].float())
    try:
        nodes = torch.tensor([[ids[place] for place in (5, 7, 6, 8)]] * 2, device=model.device)
        parents = torch.tensor([[-1, -1, 0, 1]] * 2, device=model.device)
        found = forward.branch(nodes, parents, 2).float()
    except Exception as error:  # whatever a family does with a mask that it does not expect
        return f"it takes no mask of several continuations ({first_sentence(error)})"
    within = _TOLERANCE.get(model.hf.dtype, 6e-2) * max(float(one.abs().max()) for one in expected)
    worst = max(float((found[:, place] - one).abs().max()) for place, one in enumerate(expected))
    return None if worst <= within else "it ignores a mask of several continuations"


def refuse_unbranched(model: Model) -> None:
    """ModelError where the model cannot read several continuations of a text in one pass."""
    fault = branching_fault(model)
    if fault is not None:
        raise ModelError(
            f"{model.source} ({model.family}) cannot read several continuations of a text in one pass, because {fault}",
            "give another policy",
            given=model.source,
        )
