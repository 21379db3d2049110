"""Traces and decoding through a lens: what planted models show, where the same lens is used, and what is refused."""

import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

import layerlens as ll
from layerlens.cli import run as run_command
from layerlens.lens.files import Stored, write_lens
from layerlens.lens.opening import made_for
from layerlens.models import tiny_model, tiny_tokenizer
from layerlens.records.manifest import read_manifest
from tests.conftest import tiny
from tests.fitting.test_linear import texts
from tests.invariants.laws import drawn_lens
from tests.needs_inspect import needs_inspect
from tests.refusals import refused

GIVEN = {"max_new_tokens": 0, "chat_template": False, "progress": False}


def lens_file(model, path, *, kind="linear", seed=0, layers=None):
    """A lens near the identity, in a file; as an option says it."""
    draws = torch.Generator().manual_seed(seed)
    width, layers = model.d_model, range(model.n_layers) if layers is None else layers
    weights = {layer: torch.eye(width) + torch.randn(width, width, generator=draws) / width for layer in layers}
    write_lens(path, Stored(kind, weights, {}, width, model.n_layers, made_for(model)))
    return f"{kind}:{path}"


class LastBlock(torch.nn.Module):
    """A last block that does one thing to the stream."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, hidden_states, *_, **__):
        return self.change(hidden_states)


def planted(change, unembedding):
    """A tiny model with that last block, a norm without weights and that unembedding, whose stream has a mean."""
    hf = deepcopy(tiny("llama").hf)
    with torch.no_grad():
        hf.model.norm.weight.fill_(1.0)
        hf.model.embed_tokens.weight[:, 0] += 30.0
        hf.lm_head.weight.copy_(unembedding(hf.lm_head.weight))
    hf.model.layers[-1] = LastBlock(change)
    return ll.load(hf, tokenizer=tiny("llama").tokenizer)


def rise_at_the_last_layer(model, lens, folder):
    run = ll.trace(model, texts(8, seed=5), lens=lens, out=folder, **GIVEN)
    entropy = run.layers("entropy")[run.positions["position"].to_numpy() > 0]
    return float((entropy[:, -1] - entropy[:, -2]).mean()), float((entropy[:, -1] > entropy[:, -2]).mean())


@pytest.mark.filterwarnings("ignore::layerlens.errors.Notice")
def test_a_rotation_that_the_head_undoes_is_a_rise_of_the_logit_lens_alone(tmp_path):
    """Read before its quarter turn the stream's mean, component 0, stands where the head is sure of one word."""
    turn = torch.eye(48)
    turn[:2, :2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])

    def turned_back(weight):
        weight = weight.clone()
        weight[7, 1] = -2.0
        return weight @ turn.T

    model = planted(lambda stream: stream @ turn.T, turned_back)
    found = ll.fit_lens(model, texts(40), out=tmp_path / "lens.safetensors", progress=False)
    false_rise, share = rise_at_the_last_layer(model, None, tmp_path / "logit")
    assert false_rise > 1.0
    assert share > 0.95
    rise, _ = rise_at_the_last_layer(model, found.lens, tmp_path / "linear")
    assert abs(rise) < 0.02


@pytest.mark.filterwarnings("ignore::layerlens.errors.Notice")
def test_a_rise_that_is_there_is_seen_through_both_lenses(tmp_path):
    """The last block takes the mean, of which the head makes certainty, from every second state or so."""
    by_chance = torch.randn(48, generator=torch.Generator().manual_seed(3))

    def takes_away(stream):
        taken = (torch.floor(stream @ by_chance * 1e4) % 2).unsqueeze(-1)
        changed = stream.clone()
        changed[..., :1] = stream[..., :1] * (1 - taken)
        return changed

    def sure(weight):
        weight = weight.clone()
        weight[7, 0] = 10.0
        return weight

    model = planted(takes_away, sure)
    found = ll.fit_lens(model, texts(40), out=tmp_path / "lens.safetensors", progress=False)
    for name, lens in (("logit", None), ("linear", found.lens)):
        rise, share = rise_at_the_last_layer(model, lens, tmp_path / name)
        assert rise > 1.0, name
        assert 0.3 < share < 0.9, name


def test_the_three_doors_read_through_the_same_lens(tmp_path):
    """Tokens and layers of `generate`, the drop-in and a trace; and another lens gives others."""
    model, strategy = tiny("llama"), ll.Valley(window=3)
    lens = lens_file(model, tmp_path / "one.safetensors")
    new = {"max_new_tokens": 12, "chat_template": False}
    generation = ll.generate(model, "Hello there", strategy=strategy, lens=lens, **new)
    ids = torch.tensor([model.tokenizer("Hello there").input_ids])
    with ll.decoding(model, strategy, lens=lens) as log:
        output = model.hf.generate(input_ids=ids, max_new_tokens=12, do_sample=False)
    run = ll.trace(model, ["Hello there"], strategy=strategy, lens=lens, out=tmp_path / "run", progress=False, **new)
    assert output[0, ids.shape[1] :].tolist() == generation.token_ids
    assert run.positions["next_token_id"].tolist() == generation.token_ids
    layers = generation.steps["selected_layer"].tolist()
    assert log.steps["selected_layer"].tolist() == layers
    assert run.positions["selected_layer"].tolist() == run.positions["valley_layer"].tolist() == layers
    plain = ll.generate(model, "Hello there", strategy=strategy, **new)
    assert plain.steps["selected_layer"].tolist() != layers
    last = ll.generate(model, "Hello there", strategy=ll.Last(), lens=lens, **new)
    assert last.token_ids == ll.generate(model, "Hello there", strategy=ll.Last(), **new).token_ids


@pytest.mark.parametrize(
    "strategy", [ll.Fixed(1), ll.DoLa(norm=True), ll.SLED(norm=True), ll.DoLa(), ll.SLED(rate=50.0)]
)
def test_other_strategies_read_through_it_too(strategy, tmp_path):
    """With a lens that is the identity tokens are those without one; with another they differ somewhere."""
    model = tiny("llama")
    width, layers = model.d_model, range(model.n_layers)
    same = {layer: torch.eye(width) for layer in layers}
    write_lens(tmp_path / "same.safetensors", Stored("linear", same, {}, width, model.n_layers, made_for(model)))
    options = {"strategy": strategy, "max_new_tokens": 12, "chat_template": False}
    plain, through = (
        [one.token_ids for one in ll.generate(model, ["Hello", "a b c"], lens=lens, **options)]
        for lens in (None, f"linear:{tmp_path / 'same.safetensors'}")
    )
    assert plain == through
    other, _ = drawn_lens(model)
    assert [one.token_ids for one in ll.generate(model, ["Hello", "a b c"], lens=other, **options)] != plain


def test_a_lens_that_lacks_a_layer_is_refused_with_who_reads_it(tmp_path):
    model = tiny("llama")
    lens = lens_file(model, tmp_path / "some.safetensors", layers=[1, 3])
    with refused(ll.OptionError, "lens", lens, problem="layer 2, which a trace reads"):
        ll.trace(model, ["a"], lens=lens, out=tmp_path / "run", **GIVEN)
    assert not (tmp_path / "run").exists()
    with refused(ll.OptionError, "lens", lens, problem="layers 0, 2, which SLED reads"):
        ll.generate(model, "a", strategy=ll.SLED(), lens=lens, max_new_tokens=2)
    inner = lens_file(model, tmp_path / "inner.safetensors", layers=[1, 2, 3])
    with refused(ll.OptionError, "lens", inner, problem="layer 0, which sled reads"):
        ll.trace(model, ["a"], strategy=ll.SLED(), lens=inner, out=tmp_path / "run", **GIVEN | {"max_new_tokens": 2})
    assert not (tmp_path / "run").exists()
    with (
        refused(ll.OptionError, "lens", lens, problem="layer 2, which Valley reads"),
        ll.decoding(model, ll.Valley(window=3), lens=lens),
    ):
        pass
    ll.generate(model, "a", strategy=ll.Valley(window=2), lens=lens, max_new_tokens=2)


def test_a_run_by_another_lens_is_another_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny("llama")
    one, other = (lens_file(model, Path(f"{seed}.safetensors"), seed=seed) for seed in (0, 1))
    ll.trace(model, ["a"], lens=one, out=tmp_path / "run", **GIVEN)
    record = read_manifest(tmp_path / "run")["lens"]
    assert record["kind"] == "linear"
    assert record["source"] == "0.safetensors"
    assert len(record["sha256"]) == 64
    for lens in (other, None):
        with refused(ll.RunError, given=tmp_path / "run", problem=one):
            ll.trace(model, ["a"], lens=lens, out=tmp_path / "run", resume=True, **GIVEN)
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes((tmp_path / "0.safetensors").read_bytes())
    ll.trace(model, ["a"], lens=f"linear:{moved}", out=tmp_path / "run", resume=True, **GIVEN)
    ll.trace(model, ["b"], out=tmp_path / "plain", **GIVEN)
    with refused(ll.RunError, "runs", tmp_path / "plain", problem="lens 'linear:"):
        ll.merge([tmp_path / "run", tmp_path / "plain"], out=tmp_path / "both")


@needs_inspect
def test_an_ablation_by_another_lens_is_another_ablation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny("llama")
    lens = lens_file(model, Path("one.safetensors"))
    options = {"arms": ["valley"], "p": [1], "window": 3, "max_new_tokens": 3, "limit": 1}
    ll.ablate(model, ["sample"], lens=lens, out=tmp_path / "out", **options)
    with refused(ll.RunError, given=tmp_path / "out", problem=lens):
        ll.ablate(model, ["sample"], out=tmp_path / "out", **options)
    some = lens_file(model, tmp_path / "some.safetensors", layers=[1])
    with refused(ll.OptionError, "lens", some, problem="which valley reads"):
        ll.ablate(model, ["sample"], lens=some, out=tmp_path / "other", **options)
    assert not (tmp_path / "other").exists()


def test_half_precision_takes_the_lens_of_float32(tmp_path):
    """A model in bfloat16 reads through the lens that was made for it in float32, within bfloat16's rounding."""
    lens = lens_file(tiny("llama"), tmp_path / "one.safetensors")
    halved = ll.load(deepcopy(tiny("llama").hf).to(torch.bfloat16), tokenizer=tiny("llama").tokenizer)
    full, half = (
        ll.trace(model, texts(3), lens=lens, out=tmp_path / name, **GIVEN).layers("entropy")
        for model, name in ((tiny("llama"), "full"), (halved, "half"))
    )
    assert np.abs(full - half).mean() < 0.05


@pytest.mark.parametrize(
    ("options", "option", "given"),
    [
        ({"top": 21}, "top", 21),
        ({"top": -1}, "top", -1),
        ({"targets": True, "lens_precision": "bfloat16"}, "targets", True),
        ({"js": True, "lens_precision": "bfloat16"}, "js", True),
        ({"top": 3, "lens_precision": "bfloat16"}, "top", 3),
    ],
)
def test_options_that_cannot_be(options, option, given):
    with refused(ll.OptionError, option, given):
        ll.TraceOptions(**options)


def test_more_first_words_than_there_are_are_refused(tmp_path):
    hf = deepcopy(tiny("llama").hf)
    hf.resize_token_embeddings(12)
    model = ll.load(hf, tokenizer=tiny("llama").tokenizer)
    with refused(ll.OptionError, "top", 13, problem="12 vocabulary entries"):
        ll.trace(model, ["a"], top=13, out=tmp_path / "run", **GIVEN)


@pytest.mark.parametrize(
    "options", [{"targets": True}, {"top": 3}, {"js": True}, {"sublayers": True}, {"lens": "linear:x"}]
)
def test_what_nnsight_cannot_do_is_refused(options, tmp_path):
    pytest.importorskip("nnsight")
    model = ll.load(deepcopy(tiny("llama").hf), tokenizer=tiny("llama").tokenizer, backend="nnsight")
    (option, given), *_ = options.items()
    with refused(ll.OptionError, option, given, problem="nnsight"):
        ll.trace(model, ["a"], out=tmp_path / "run", **(GIVEN | options))


def test_runs_say_through_which_lens_they_were_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = tiny("llama")
    lens = lens_file(model, Path("one.safetensors"))
    through = ll.trace(model, texts(2), lens=lens, out="through", max_new_tokens=3, chat_template=False, progress=False)
    plain = ll.trace(model, texts(2), out="plain", max_new_tokens=3, chat_template=False, progress=False)
    assert (through.lens, plain.lens) == (lens, "logit")
    assert lens in repr(through)
    assert "lens" not in repr(plain)
    older = {name: value for name, value in plain.manifest.items() if name != "lens"}
    Path("plain/manifest.json").write_text(json.dumps(older))
    assert ll.open_run("plain").lens == "logit"
    assert run_command(["compare", "through", "plain"]) == 0
    shown = capsys.readouterr().out
    assert f"read through {lens}" in shown
    assert "read through logit" in shown


def test_of_a_token_that_the_head_lacks_there_is_nothing_to_say(tmp_path):
    """Mllama embeds tokens that its head never emits, such as the one for an image."""
    hf, tokenizer = tiny_model("mllama"), tiny_tokenizer()
    n_vocab = hf.get_output_embeddings().weight.shape[0]
    tokenizer.add_tokens([f"<{number}>" for number in range(n_vocab - len(tokenizer) + 4)])
    model = ll.load(hf, tokenizer=tokenizer)
    assert model.n_known_tokens > model.n_vocab + 1
    text = f"ab{tokenizer.convert_ids_to_tokens(n_vocab + 1)}cd"
    ids = model.tokenizer(text).input_ids
    beyond = [place for place, token_id in enumerate(ids[1:]) if token_id >= model.n_vocab]
    assert len(beyond) == 1
    run = ll.trace(model, [text], out=tmp_path / "run", targets=True, **GIVEN)
    assert np.isnan(run.layers("next_log_prob")[beyond]).all()
    assert (run.layers("next_rank")[beyond] == -1).all()
    others = [place for place in range(len(ids) - 1) if place not in beyond]
    assert np.isfinite(run.layers("next_log_prob")[others]).all()
    assert run.positions["next_token_id"].iloc[beyond[0]] == ids[beyond[0] + 1]
