"""The Jacobian lens, fitted by TransformerLens and saved in its format.

J(l) says how the state of the last layer changes with that of layer l. It is ∂h(L, t′)/∂h(l, t), summed over the target
positions t′ ≥ t and averaged over the source positions t and over texts (`JacobianLens.fit` of TransformerLens 4.3).
The model is copied, because TransformerLens puts its components into it. The copy computes in float32.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from layerlens.errors import ModelError, OptionError, first_sentence, spelled
from layerlens.fitting.linear import Affinities
from layerlens.fitting.options import JacobianOptions, lacks_transformer_lens
from layerlens.fitting.texts import Split
from layerlens.fitting.workplace import Workplace
from layerlens.lens.files import Stored
from layerlens.lens.opening import made_for
from layerlens.models import Model
from layerlens.models.backend import TRANSFORMERS
from layerlens.tracing.progress import Progress


def fit_jacobian(
    model: Model, split: Split, options: JacobianOptions, place: Workplace, progress: Progress
) -> Affinities:
    """The Jacobian lens of the layers 1..L−1, averaged over the first of the texts to fit on, one text at a time.

    Raises:
        OptionError: TransformerLens is not installed, or the model's weights are packed or already in a bridge.
        ModelError: TransformerLens has no bridge for the model, or no Jacobian lens.
    """
    texts = split.fitted[: options.most_texts]
    sums = torch.zeros(model.n_layers - 1, model.d_model, model.d_model)
    done = place.load([sums], "sums") or {"texts": 0, "metadata": None}
    progress.begin("fitting", len(texts), "texts", done=done["texts"])
    bridge = _bridge(model) if done["texts"] < len(texts) else None
    for number, text in enumerate(texts[done["texts"] :], done["texts"] + 1):
        lens = _fitted(bridge, text.token_ids, model, split, options)
        for matrix, (_, of_text) in zip(sums, sorted(lens.jacobians.items()), strict=True):
            matrix += of_text
        done = {"texts": number, "metadata": lens.metadata}
        progress.advance(1, len(text.token_ids))
        if place.is_due() or number == len(texts):
            place.save(done, [sums], "sums")
    weights = {layer: matrix / len(texts) for layer, matrix in enumerate(sums, 1)}
    metadata = {**done["metadata"], "n_prompts": len(texts)}
    return Affinities(weights, {}, {"n_texts": len(texts), "n_tokens": split.n_positions(texts), "metadata": metadata})


def write_jacobian(path: Path, stored: Stored) -> None:
    """Write the lens as TransformerLens does, in float32. The file appears whole or not at all."""
    lens_of = _transformer_lens()
    said = dict(stored.fit)
    metadata = said.pop("metadata")
    matrices = {layer - 1: matrix for layer, matrix in stored.weights.items()}
    n_texts = metadata["n_prompts"]
    lens = lens_of(matrices, n_prompts=n_texts, d_model=stored.d_model, metadata={**metadata, "fit": said})
    unfinished = path.with_name(f"{path.name}.partial")
    lens.save(str(unfinished), dtype=torch.float32)
    unfinished.replace(path)


def refuse_without_transformer_lens() -> None:
    """OptionError where TransformerLens is not installed."""
    _transformer_lens()


def _transformer_lens() -> Any:
    try:
        from transformer_lens.tools.analysis import JacobianLens
    except ImportError as error:
        raise lacks_transformer_lens() from error
    return JacobianLens


def _bridge(model: Model) -> Any:
    """A bridge of TransformerLens around a copy of the model in float32; it takes token ids for texts."""
    if model.backend is not TRANSFORMERS:
        what = "runs a model that cannot be copied into a bridge of TransformerLens"
        raise OptionError.about("backend", model.backend.name, what, f"leave {spelled('backend')} out")
    if model.quantization is not None:
        what = "leaves weights packed, and packed weights have no gradient"
        raise OptionError.about("quantize", model.quantization, what, "load the model without it")
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    hf = deepcopy(model.hf).float()
    kind = type(hf).__name__
    try:
        bridge: Any = build_bridge_from_module(hf, kind, hf_config=hf.config, tokenizer=None, model_name=model.source)
    except Exception as error:  # an architecture that TransformerLens lacks or does not support
        raise _refused(model, error) from error
    device = model.device
    bridge.eval()
    bridge.to_tokens = lambda token_ids: torch.tensor([token_ids], device=device)
    return bridge


def _fitted(bridge: Any, token_ids: tuple[int, ...], model: Model, split: Split, options: JacobianOptions) -> Any:
    try:
        return _transformer_lens().fit(
            bridge,
            [token_ids],
            corpus=f"layerlens {split.digest()[:16]}",
            dim_batch=options.dim_batch,
            max_seq_len=options.max_length,
            skip_first_positions=split.skip,
            show_progress=False,
            metadata={"made_for": made_for(model)},
        )
    except ValueError as error:  # no such lens for this architecture
        raise _refused(model, error) from error


def _refused(model: Model, error: Exception) -> ModelError:
    problem = f"TransformerLens cannot fit a Jacobian lens to {model.source} ({first_sentence(error)})"
    return ModelError(problem, "fit a linear or a tuned lens", option="kind", given="jacobian")
