"""What a trace can ask of each backend, and generating where the weights are."""

from collections.abc import Callable, Sequence

import torch

from layerlens.decode.batch import Decoded
from layerlens.decode.log import Decisions
from layerlens.decode.prompts import end_token_ids
from layerlens.decode.strategies import Choice, Strategy
from layerlens.errors import OptionError
from layerlens.lens import refuse_without_bfloat16
from layerlens.models import Model
from layerlens.models.nnsight import Nnsight, refuse_edits
from layerlens.tracing.options import TraceOptions


def refuse_unable(model: Model, options: TraceOptions, strategy: Strategy) -> None:
    """OptionError for what the model's backend cannot do."""
    backend = model.backend
    if options.mode not in backend.modes:
        raise OptionError(
            f"--mode {options.mode} does not work with --backend {backend.name}, which records in one pass; "
            f"give --mode {' or '.join(backend.modes)}"
        )
    for name, asked in (("--kl", options.kl), ("--lens-precision bfloat16", options.lens_precision != "float32")):
        if asked and not backend.uses_meter:
            raise OptionError(
                f"{name} does not work with --backend {backend.name}; leave it out, or give another backend"
            )
    if options.lens_precision != "float32":
        refuse_without_bfloat16(model.unembed.weight.device)
    if options.max_new_tokens == 0:
        return
    refuse_edits(model)
    if not backend.is_here and not (strategy.is_untouched and _is_plain(options)):
        raise OptionError(
            f"--backend {backend.name} generates greedily from the last layer alone; leave out strategy, temperature, "
            "repetition penalty, stop strings and a generation config that changes logits, or trace given text with "
            "--max-new-tokens 0"
        )


def generate_remotely(
    model: Model, prompts: Sequence[Sequence[int]], options: TraceOptions, on_tokens: Callable[[int], None]
) -> Decoded:
    """What transformers' greedy generation emits for each prompt, one by one, where the weights are."""
    backend, ends = model.backend, end_token_ids(model, options)
    assert isinstance(backend, Nnsight)
    outputs = []
    for prompt in prompts:
        outputs.append(backend.generated(model, prompt, options.max_new_tokens, options.min_new_tokens or 0, ends))
        on_tokens(len(outputs[-1]))
    longest = max(map(len, outputs))
    tokens = torch.tensor([[*output, *[0] * (longest - len(output))] for output in outputs])
    steps = []
    for token_ids in tokens.t():
        last = torch.full_like(token_ids, model.n_layers)
        choice = Choice(logits=torch.empty(len(prompts), 0), selected_layer=last, last_token_id=token_ids)
        steps.append(Decisions.of(choice, torch.ones_like(token_ids)))
    reasons = ["stop" if output[-1] in ends else "length" for output in outputs]
    return Decoded(outputs, reasons, Decisions.stack(steps))


def _is_plain(options: TraceOptions) -> bool:
    penalised = options.repetition_penalty not in (None, 1.0)
    return not options.samples and not penalised and not options.stops and not options.generation_config
