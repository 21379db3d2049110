"""Law 11: each law turns red when the mistake it guards against is made."""

import contextlib
from itertools import pairwise

import numpy as np
import pytest
import torch

import layerlens as ll
from layerlens import lens
from layerlens.decode import batch, contrast, padding, readouts, scan
from layerlens.decode.chooser import Chooser
from layerlens.lens import tiled
from layerlens.models import Unembed, hooks
from layerlens.tracing import engines, meter, passes, tracer
from tests.invariants import laws
from tests.refusals import refused


def test_dropped_final_norm(monkeypatch):
    model = laws.fresh("llama")
    laws.readout_is_the_models_logits(model)
    monkeypatch.setattr(Unembed, "normed", lambda self, states: states)
    with pytest.raises(AssertionError):
        laws.readout_is_the_models_logits(model)


@pytest.mark.parametrize("family", ["gemma2", "granite", "gptj"])
def test_dropped_soft_cap_scale_or_bias(monkeypatch, family):
    model = laws.fresh(family)
    laws.readout_is_the_models_logits(model)

    def bare(self, normed, start, stop, out=None):
        return normed @ self.weight[start:stop].t()

    monkeypatch.setattr(Unembed, "logits_tile", bare)
    with pytest.raises(AssertionError):
        laws.readout_is_the_models_logits(model)


def test_layers_shifted_by_one(monkeypatch, run_of):
    model = laws.fresh("llama")
    laws.numbers_agree_with_the_reference(model, run_of)
    right = meter.Meter.on_block
    monkeypatch.setattr(
        meter.Meter, "on_block", lambda self, index, *seen: right(self, (index + 1) % model.n_layers, *seen)
    )
    with pytest.raises(AssertionError):
        laws.numbers_agree_with_the_reference(model, run_of)


def test_input_of_a_block_taken_for_its_output(monkeypatch, run_of):
    model = laws.fresh("llama")
    right = meter.Meter.on_block
    monkeypatch.setattr(
        meter.Meter, "on_block", lambda self, index, h_in, part, h_out: right(self, index, h_in, part, h_in)
    )
    with pytest.raises(AssertionError):
        laws.numbers_agree_with_the_reference(model, run_of)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_divergence_from_the_layer_instead_of_from_the_last(monkeypatch, run_of, family):
    model = laws.fresh(family)
    laws.numbers_agree_with_the_reference(model, run_of)

    def swapped(states, readings, unembed):
        pairs = zip(states, readings, strict=True)
        return [lens.kl_from_last((states[-1], s), (readings[-1], r), unembed)[0] for s, r in pairs]

    monkeypatch.setattr(meter, "kl_from_last", swapped)
    with pytest.raises(AssertionError, match="kl_last_to_layer"):
        laws.numbers_agree_with_the_reference(model, run_of)


@pytest.mark.parametrize("family", ["granite", "gemma2", "olmo2"])
def test_module_outputs_taken_for_what_is_added(monkeypatch, run_of, family):
    """Residual multipliers and post-norms sit between a sub-layer's output and the stream."""
    model = laws.fresh(family)
    laws.parts_add_up(model)
    wrong = [hooks.SubLayers(block.self_attn, parallel=True) for block in model.blocks]
    monkeypatch.setitem(model.__dict__, "sublayers", wrong)
    with pytest.raises(AssertionError):
        laws.parts_add_up(model)
    with pytest.raises(AssertionError):
        laws.numbers_agree_with_the_reference(model, run_of)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_5_text", "gpt_oss"])
def test_unmasked_padding(monkeypatch, run_of, family):
    model = laws.fresh(family)
    right = passes.pad

    def unmasked(*arguments, **options):
        ids, mask = right(*arguments, **options)
        return ids, torch.ones_like(mask)

    monkeypatch.setattr(batch, "pad", unmasked)
    monkeypatch.setattr(padding, "pad", unmasked)
    with refused(ll.OptionError, "batch_size"):
        laws.batching_changes_nothing(model, run_of)
    monkeypatch.setattr(tracer, "refuse_ignored_padding", lambda model: None)
    with pytest.raises(AssertionError):
        laws.batching_changes_nothing(model, run_of)


def test_less_or_equal_for_less():
    laws.valley_is_eq_7(lens.valley_layers)

    def with_ties(entropy, window):
        candidates = entropy[:, entropy.shape[1] - window :].flip(1)
        return entropy.shape[1] - (candidates[:, 1:] <= candidates[:, :-1]).cumprod(1).sum(1)

    def one_step_too_far(entropy, window):
        return lens.valley_layers(entropy, min(window + 1, entropy.shape[1]))

    def minimum_of_the_window(entropy, window):
        return entropy.shape[1] - window + entropy[:, entropy.shape[1] - window :].nan_to_num(9).argmin(1) + 1

    for wrong in (with_ties, one_step_too_far, minimum_of_the_window):
        with pytest.raises(AssertionError):
            laws.valley_is_eq_7(wrong)


def test_a_hook_that_changes_what_it_sees(monkeypatch, run_of):
    model = laws.fresh("llama")
    laws.looking_changes_nothing(model, run_of)
    monkeypatch.setattr(meter.Meter, "on_block", lambda self, index, h_in, part, h_out: h_out.mul_(1.001))
    with pytest.raises((AssertionError, ValueError)):
        laws.looking_changes_nothing(model, run_of)


def test_hooks_that_stay(monkeypatch, run_of):
    model = laws.fresh("llama")
    stay = contextlib.ExitStack()

    @contextlib.contextmanager
    def watch_and_stay(*arguments):
        stay.enter_context(hooks.watch_blocks(*arguments))
        yield

    monkeypatch.setattr(passes, "watch_blocks", watch_and_stay)
    with pytest.raises(AssertionError):
        laws.looking_changes_nothing(model, run_of)
    stay.close()


def test_rows_of_one_prompt_given_to_another(monkeypatch, run_of):
    model = laws.fresh("llama")
    right = engines.generate

    def swapped(*arguments, **options):
        decoded, rows = right(*arguments, **options)
        return decoded, passes.Rows(rows.batch_row[::-1].copy(), rows.position)

    monkeypatch.setattr(engines, "generate", swapped)
    with pytest.raises((AssertionError, IndexError)):
        laws.batching_changes_nothing(model, run_of)


def test_entropy_in_bits(monkeypatch, run_of):
    model = laws.fresh("llama")
    right = lens.read

    def bits(*arguments, **options):
        reading = right(*arguments, **options)
        return reading._replace(entropy=reading.entropy / np.log(2))

    monkeypatch.setattr(tiled, "read", bits)
    with pytest.raises(AssertionError):
        laws.numbers_agree_with_the_reference(model, run_of)


def test_first_state_of_a_prompt_measured_for_its_last(monkeypatch, run_of):
    model = laws.fresh("llama")
    laws.modes_agree(model, run_of)
    monkeypatch.setattr(passes, "_last", lambda stream: stream[:, 0].clone())
    with pytest.raises(AssertionError):
        laws.modes_agree(model, run_of)


@pytest.mark.parametrize("way", ["batched", "lazy"])
def test_a_tie_that_goes_on_walking(monkeypatch, way):
    """<= for <, in either scan: a tensor that calls equal numbers lower."""
    laws.walk_is_equation_7(way)

    class Lenient(torch.Tensor):
        def __lt__(self, other):
            return self <= other

    right = readouts.Readouts.measured

    def lenient(*arguments):
        logits, values = right(*arguments)
        return logits, values.as_subclass(Lenient)

    monkeypatch.setattr(readouts.Readouts, "measured", lenient)
    with pytest.raises(AssertionError):
        laws.walk_is_equation_7(way)


def test_a_tie_that_goes_on_walking_where_the_host_looks(monkeypatch):
    laws.walk_is_equation_7("batched")

    def lenient(values):
        return next((n for n, (here, below) in enumerate(pairwise(values[::-1])) if not below <= here), len(values) - 1)

    monkeypatch.setattr(scan, "n_steps_back", lenient)
    with pytest.raises(AssertionError):
        laws.walk_is_equation_7("batched")


def test_candidates_without_the_final_norm(monkeypatch):
    model = laws.fresh("llama")
    laws.decoding_is_the_plain_loop(model)
    monkeypatch.setattr(Unembed, "normed", lambda self, states, *, norm=True: states)
    with pytest.raises(AssertionError):
        laws.decoding_is_the_plain_loop(model)


@pytest.mark.parametrize("by", [-1, 1])
def test_candidates_shifted_by_one_layer(monkeypatch, by):
    model = laws.fresh("llama")
    right = readouts.Readouts.__init__

    def shifted(self, unembed, states, *arguments, **options):
        names = sorted(states)
        moved = {name: states[names[(place + by) % len(names)]] for place, name in enumerate(names)}
        right(self, unembed, moved, *arguments, **options)

    monkeypatch.setattr(readouts.Readouts, "__init__", shifted)
    with pytest.raises(AssertionError):
        laws.decoding_is_the_plain_loop(model)


def test_unmasked_padding_while_decoding(monkeypatch):
    model = laws.fresh("llama")
    right = batch.pad

    def unmasked(*arguments, **options):
        ids, mask = right(*arguments, **options)
        return ids, torch.ones_like(mask)

    monkeypatch.setattr(batch, "pad", unmasked)
    with pytest.raises(AssertionError):
        laws.decoding_is_the_plain_loop(model)


def test_switched_off_through_our_own_product(monkeypatch):
    """Rebuilt logits are close, not equal."""
    model = laws.fresh("llama")
    laws.switched_off_is_the_model(model)
    monkeypatch.setattr(Chooser, "is_passive", False)
    monkeypatch.setattr(
        Unembed, "logits", lambda self, states, **_: self.normed(states).double() @ self.weight.T.double()
    )
    with pytest.raises((AssertionError, StopIteration)):
        laws.switched_off_is_the_model(model)


def test_kl_with_its_sides_swapped(monkeypatch):
    laws.divergence_is_its_formula()
    right, other = contrast._divergence, {"published": "js", "js": "published"}
    monkeypatch.setattr(contrast, "_divergence", lambda last, early, kind: right(last, early, other[kind]))
    with pytest.raises(AssertionError):
        laws.divergence_is_its_formula()
