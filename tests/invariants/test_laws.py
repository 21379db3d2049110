"""Laws 1-5 and 9 of the design for every family."""

import pytest

import layerlens as ll
from layerlens.models import tiny_names
from layerlens.models.families import FAMILIES
from tests.conftest import tiny
from tests.invariants import laws
from tests.thorough import some

# what the config decides within a family, and layer patterns that checkpoints of it have
VARIANTS = {
    "gpt_neox": {"use_parallel_residual": False},
    "gemma4_text": {"num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 3},
    "cohere2": {"tie_word_embeddings": False},
    "gpt2": {"n_inner": 60},
}
CASES = [pytest.param(name, {}, id=name) for name in tiny_names()] + [
    pytest.param(name, changes, id=f"{name}-{'-'.join(changes)}") for name, changes in VARIANTS.items()
]


every = pytest.mark.parametrize(("family", "changes"), CASES)
a_dozen = pytest.mark.parametrize(("family", "changes"), some(CASES, 12))  # of laws that take long


@pytest.fixture(scope="module")
def made():
    """Models and runs that several laws are asked about."""
    return {}


@pytest.fixture
def model(family, changes, made):
    name = (family, *changes)
    if name not in made:
        made[name] = laws.fresh(family, **changes) if changes else tiny(family)
    return made[name]


@pytest.fixture
def run_once(made, tmp_path_factory):
    """Trace, or the run of the same model, prompts and options that another law was asked about."""

    def trace(model, prompts, **options):
        options = {"batch_size": 1} | ({"positions": "generated"} if options["max_new_tokens"] else {}) | options
        name = (id(model), *prompts, *sorted(options.items()))
        if name not in made:
            made[name] = ll.trace(model, prompts, out=tmp_path_factory.mktemp("law") / "run", progress=False, **options)
        return made[name]

    return trace


@every
def test_1_readout_is_the_models_logits(model):
    laws.readout_is_the_models_logits(model)


@every
def test_2_parts_add_up(model):
    laws.parts_add_up(model)


@a_dozen
def test_3_looking_changes_nothing(model, run_of):
    laws.looking_changes_nothing(model, run_of)


@a_dozen
def test_4_batching_changes_nothing(model, run_once):
    laws.batching_changes_nothing(model, run_once)


@a_dozen
def test_5_modes_agree(model, run_once, changes):
    # with shared keys and values, generating computes the prompt's states in the first layers only
    laws.modes_agree(model, run_once, ["generated"] if "num_kv_shared_layers" in changes else ["generated", "all"])


@every
def test_5_tiled_is_whole(model):
    laws.tiled_is_whole(model)


@every
def test_every_number_agrees_with_an_independent_reference(model, run_of):
    laws.numbers_agree_with_the_reference(model, run_of)


@a_dozen
def test_11_every_lens_agrees_with_the_reference_and_leaves_the_last_layer(model, run_of):
    laws.lenses_agree_with_the_reference(model, run_of)


@every
def test_6_switched_off_is_the_model(model):
    laws.switched_off_is_the_model(model)


@every
def test_7_decoding_is_the_plain_loop(model):
    laws.decoding_is_the_plain_loop(model)


@every
def test_after_an_exception_no_hook_remains(model, monkeypatch, run_of):
    def broken(*_):
        raise RuntimeError("planted")

    monkeypatch.setattr("layerlens.tracing.meter.Meter.on_block", broken)
    for mode in ("generate", "replay"):
        with pytest.raises(RuntimeError, match="planted"):
            run_of(model, ["abc"], max_new_tokens=3, mode=mode)
    assert laws.hook_count(model.hf) == 0


@every
def test_every_family_has_a_tiny_model(family, changes):
    config = tiny(family).hf.config
    assert config.model_type in FAMILIES
    assert len(tiny(family).layer_kinds) == len(tiny(family).mlp_kinds) == config.num_hidden_layers
