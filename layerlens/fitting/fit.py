"""Fit a lens to a model on texts, write it to a file, and measure what it gains."""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from layerlens.datasets import Dataset, Prompt, from_prompts
from layerlens.errors import OptionError, spelled
from layerlens.fitting.fitted import Fitted
from layerlens.fitting.gain import gain
from layerlens.fitting.jacobian import fit_jacobian, refuse_without_transformer_lens, write_jacobian
from layerlens.fitting.linear import Affinities, fit_linear
from layerlens.fitting.options import options_of, refuse_unless_free
from layerlens.fitting.texts import Split, split_texts
from layerlens.fitting.tuned import fit_tuned
from layerlens.fitting.workplace import Workplace, refuse_other
from layerlens.lens.files import Stored, read_lens, write_lens
from layerlens.lens.opening import made_for
from layerlens.lens.transport import Affine
from layerlens.models import Model
from layerlens.models.placement import is_spread
from layerlens.models.use import uses_model
from layerlens.records.files import writing
from layerlens.tracing.progress import Progress

Fit = Callable[[Model, Split, Any, Workplace, Progress], Affinities]


_FITS: dict[str, Fit] = {"linear": fit_linear, "tuned": fit_tuned, "jacobian": fit_jacobian}


@uses_model()
def fit_lens(
    model: Model,
    prompts: Dataset | Iterable[str | Sequence[dict[str, str]] | Prompt],
    kind: str = "linear",
    *,
    out: str | os.PathLike[str],
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    **options: Any,
) -> Fitted:
    """Fit a lens to a model on texts, write it, and measure what it gains on texts that it was not fitted on.

    Args:
        model: from `load`; all of it must be in this process, on one device.
        prompts: a dataset, or texts, or lists of chat messages. A tenth of them, 2 to 20, is held out to choose
            settings by, and as many to measure the gain on. Repeated texts are used once.
        kind: "linear" (arXiv 2303.09435), "tuned" (arXiv 2303.08112) or "jacobian" (by TransformerLens).
        out: the file to write: .safetensors, or .pt for a Jacobian lens.
        resume: continue the fit that was begun at `out`, with the same model, prompts and options. The lens is the same
            as that of a fit that was not interrupted.
        overwrite: replace the lens at `out`, once the new one is fitted; nothing but a lens that a fit wrote is ever
            replaced.
        progress: show a progress bar on standard error.
        **options: fields of `LinearOptions`, `TunedOptions` or `JacobianOptions`.

    Raises:
        OptionError: an option has a value that is not possible, `out` already exists, or another fit was begun there.
        ModelError: TransformerLens cannot fit a lens to such a model.
        PromptError: the texts are too few, or one of them has states that are NaN or infinite.
        RunError: the files that a fit keeps beside `out` cannot be written.
    """
    asked = options_of(kind, options)
    if kind == "jacobian":
        refuse_without_transformer_lens()
    path = refuse_unless_free(out, asked, resume=resume, overwrite=overwrite)
    if is_spread(model.hf):
        what = "is on several devices, and a lens is fitted on one"
        raise OptionError.about("device_map", model.source, what, f"load it with {spelled('device')}")
    split = split_texts(model, prompts if isinstance(prompts, Dataset) else from_prompts(prompts), asked)
    dtype = str(model.hf.dtype).removeprefix("torch.")
    manifest = {"kind": kind, **made_for(model), "dtype": dtype, **asdict(asked), "texts": split.digest()}
    if path.exists() and not overwrite:
        return _made_before(path, kind, manifest)
    with ExitStack() as stack:
        place = stack.enter_context(Workplace(path, manifest, resume=resume, overwrite=overwrite))
        shown = stack.enter_context(Progress(shown=progress))
        found = _FITS[kind](model, split, asked, place, shown)
        stored = Stored(kind, found.weights, found.biases, model.d_model, model.n_layers, made_for(model))
        transport = Affine(kind, stored.weights, stored.biases, model.n_layers, adds=stored.adds, source=str(path))
        seconds = place.seconds
        table = gain(
            model, transport.opened(model.hf, model.unembed.device, model.hf.dtype), split.measured, split.skip, shown
        )
        said = {
            **manifest,
            "skipped": split.skip,
            "n_texts": len(split.fitted),
            "n_tokens": split.n_positions(split.fitted),
            "n_texts_chosen_by": len(split.chosen_by),
            **found.said,
            "seconds": round(seconds, 1),
            "gain": table.to_dict("list"),
        }
        write = write_jacobian if kind == "jacobian" else write_lens
        with writing(path):
            write(path, replace(stored, fit=said))
        place.remove()
    return Fitted(path, kind, table, said)


def _made_before(path: Path, kind: str, manifest: dict[str, Any]) -> Fitted:
    stored = read_lens(kind, path)
    made = Fitted.of(path, stored)
    refuse_other(path, manifest, {name: made.said.get(name) for name in manifest})
    return made
