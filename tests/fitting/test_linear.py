"""The linear lens is the ridge regression that a plain solution in float64 gives, however its states come by."""

import json
from copy import deepcopy

import numpy as np
import pytest
import torch

import layerlens as ll
from layerlens.errors import Notice
from layerlens.fitting import linear
from layerlens.fitting.linear import PENALTIES, Ridge
from layerlens.fitting.moments import Moments
from layerlens.fitting.options import LinearOptions
from layerlens.fitting.texts import split_texts
from layerlens.fitting.workplace import Workplace
from layerlens.lens.files import read_lens
from layerlens.lens.opening import open_lens
from tests.conftest import tiny
from tests.refusals import refused

# a plain one, tied with soft-cap, parallel blocks, absolute positions, a projection before the head, recurrences
FAMILIES = ["llama", "gemma2", "cohere", "gpt2", "opt", "qwen3_5_text"]
WORDS = """the ferry carries cars across a wide river every day and each crossing takes time before it returns"""
WORDS = WORDS.split()


def texts(n, seed=0, n_words=18):
    """Of random words, each another one."""
    draws = np.random.default_rng(seed)
    return [" ".join(draws.choice(WORDS, n_words)) for _ in range(n)]


def fitted(model, tmp_path, prompts=None, name="lens", **options):
    out = tmp_path / f"{name}.safetensors"
    return ll.fit_lens(model, texts(20) if prompts is None else prompts, out=out, progress=False, **options)


def plain_states(model, ids):
    """Layers 0..L of one text by transformers' own hidden states, the last before the final norm; [L + 1, seq, d]."""
    kept = {}

    def keep_input(_block, args, kwargs):
        kept[0] = (args[0] if args else kwargs["hidden_states"])[0]

    hooks = [model.blocks[0].register_forward_pre_hook(keep_input, with_kwargs=True)]
    for index, block in enumerate(model.blocks):
        hooks.append(
            block.register_forward_hook(
                lambda _b, _a, output, index=index: kept.__setitem__(
                    index + 1, (output[0] if isinstance(output, tuple) else output)[0]
                )
            )
        )
    with torch.no_grad():
        model.hf(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return np.stack([kept[layer].double().numpy() for layer in range(model.n_layers + 1)])


def rows_of(model, part, skip):
    return np.concatenate([plain_states(model, text.token_ids)[:, skip:] for text in part], axis=1)


def plain_ridge(x, y, penalty):
    """A and b from augmented least squares: rows sqrt(λ v) I below the centred states."""
    x, y, mean_x, mean_y = x - x.mean(0), y - y.mean(0), x.mean(0), y.mean(0)
    unit = np.square(x).sum() / x.shape[1]
    augmented = np.concatenate([x, np.sqrt(penalty * unit) * np.eye(x.shape[1])])
    solution = np.linalg.lstsq(augmented, np.concatenate([y, np.zeros((x.shape[1], y.shape[1]))]), rcond=None)[0]
    return solution.T, mean_y - solution.T @ mean_x


@pytest.mark.filterwarnings("ignore::layerlens.errors.Notice")
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_ridge_regression_with_the_penalty_that_held_out_texts_choose(family, tmp_path):
    model, given = tiny(family), texts(20, n_words=8)  # so short that all that is held out is looked at
    found = fitted(model, tmp_path, given)
    stored = read_lens("linear", found.path)
    split = split_texts(model, ll.datasets.from_prompts(given), LinearOptions())
    x, held = (rows_of(model, part, split.skip) for part in (split.fitted, split.chosen_by))
    for layer in range(model.n_layers):
        candidates = {penalty: plain_ridge(x[layer], x[-1], penalty) for penalty in PENALTIES}
        mapped = {penalty: held[layer] @ weight.T + bias for penalty, (weight, bias) in candidates.items()}
        divergences = {penalty: plain_kl(model, states, held[-1]) for penalty, states in mapped.items()}
        chosen = found.said["penalties"][layer]
        assert divergences[chosen] <= min(divergences.values()) * (1 + 1e-3) + 1e-6
        predicted = held[layer] @ stored.weights[layer].double().numpy().T + stored.biases[layer].double().numpy()
        np.testing.assert_allclose(predicted, mapped[chosen], rtol=1e-4, atol=1e-4)
    assert set(stored.weights) == set(stored.biases) == set(range(model.n_layers))


@torch.no_grad()
def plain_kl(model, states, last):
    """Mean KL(p_L ‖ p_l) from whole logits."""
    log_probs, target = (
        model.unembed.logits(torch.from_numpy(one).float()).double().log_softmax(1) for one in (states, last)
    )
    return float((target.exp() * (target - log_probs)).sum(1).mean())


def test_the_smallest_penalty_is_least_squares():
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(200, 7, generator=draws, dtype=torch.float64) @ torch.randn(7, 7, generator=draws).double()
    y = torch.randn(200, 5, generator=draws, dtype=torch.float64)
    ridge = ridge_of(x, y)
    ones = np.concatenate([x.numpy(), np.ones((200, 1))], axis=1)
    plain = np.linalg.lstsq(ones, y.numpy(), rcond=None)[0]
    weight, bias = ridge.at(0.0)
    np.testing.assert_allclose(weight.numpy(), plain[:-1].T, atol=1e-12)
    np.testing.assert_allclose(bias.numpy(), plain[-1], atol=1e-12)


def ridge_of(x, y):
    mean_x, mean_y = x.mean(0), y.mean(0)
    return Ridge((x - mean_x).T @ (x - mean_x), (x - mean_x).T @ (y - mean_y), mean_x, mean_y)


def test_the_penalty_follows_the_noise():
    """Where nothing but noise is to be learnt the largest penalty wins; where nothing is noise, a small one."""
    model, draws = tiny("llama"), torch.Generator().manual_seed(2)
    width = model.d_model
    x, held = (torch.randn(n, width, generator=draws, dtype=torch.float64) for n in (80, 400))
    noise, held_noise = (torch.randn(n, width, generator=draws, dtype=torch.float64) for n in (80, 400))
    turn = torch.randn(width, width, generator=draws, dtype=torch.float64)
    divergences = {}
    for name, share in (("noise", 0.0), ("exact", 1.0)):
        y, held_y = (share * (a @ turn) + (1 - share) * b for a, b in ((x, noise), (held, held_noise)))
        divergences[name] = ridge_of(x, y).divergences(held.float(), held_y.float(), model.unembed)
    assert divergences["noise"].argmin() == len(PENALTIES) - 1
    exact = divergences["exact"]  # the smallest penalties differ by less than float32 can tell
    assert exact[0] - exact.min() < 1e-6
    assert (exact[PENALTIES.index(1e-3) :].diff() > 1e-6).all()


@pytest.mark.parametrize("offset", [0.0, 3e4])
def test_sums_in_pieces_are_those_of_all_at_once(offset, tmp_path):
    """Also where components are ten thousand times as large as they vary, as a few are in real states."""
    draws = torch.Generator().manual_seed(3)
    states = [torch.randn(300, 6, generator=draws) + torch.tensor([offset, 0, 0, 0, 0, -offset]) for _ in range(3)]
    whole = torch.stack([layer.double() for layer in states])
    centred = whole - whole.mean(1, keepdim=True)
    with Workplace(tmp_path / "lens", {}, resume=False) as place:
        moments = Moments(2, 6, place)
        for start in range(0, 300, 70):
            moments.add([[layer[start : start + 70] for layer in states]])
        means = moments.centre()
    torch.testing.assert_close(means, whole.mean(1), rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(moments.gram, centred[:2].mT @ centred[:2], rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(moments.cross, centred[:2].mT @ centred[2], rtol=1e-10, atol=1e-9)


@pytest.mark.filterwarnings("ignore::layerlens.errors.Notice")
def test_sums_on_a_disk_give_the_same_lens(tmp_path, monkeypatch):
    model = tiny("llama")
    one = fitted(model, tmp_path)
    monkeypatch.setattr("layerlens.fitting.moments._MOST_IN_MEMORY", 0)
    monkeypatch.setattr(linear, "_ROWS_ON_DISK", linear._ROWS_IN_MEMORY)
    other = fitted(model, tmp_path, name="other")
    same_tensors(one.path, other.path)


def same_tensors(one, other, kind="linear"):
    one, other = read_lens(kind, one), read_lens(kind, other)
    assert list(one.weights) == list(other.weights)
    for layer in one.weights:
        assert torch.equal(one.weights[layer], other.weights[layer])
        assert torch.equal(one.biases[layer], other.biases[layer])


class Rotated(torch.nn.Module):
    """A last block that turns the stream, which is what the head undoes."""

    def __init__(self, turn):
        super().__init__()
        self.turn = turn

    def forward(self, hidden_states, *_, **__):
        return hidden_states @ self.turn.T


def rotated_model():
    """A tiny model with one block more, a rotation, and an unembedding that turns back."""
    model = deepcopy(tiny("llama").hf)
    turn = torch.linalg.qr(torch.randn(48, 48, generator=torch.Generator().manual_seed(4)))[0]
    model.model.norm.weight.data.fill_(1.0)  # the norm then commutes with the rotation
    with torch.no_grad():
        model.lm_head.weight.copy_(model.lm_head.weight @ turn.T)
    model.model.layers[-1] = Rotated(turn)
    return ll.load(model, tokenizer=tiny("llama").tokenizer), turn


@pytest.mark.filterwarnings("ignore::layerlens.errors.Notice")
def test_a_rotation_that_the_head_undoes_is_seen_through(tmp_path):
    """The logit lens reads the states before it as another model's; the linear lens reads what is there."""
    model, turn = rotated_model()
    found = fitted(model, tmp_path)
    last = found.gain.set_index("layer").loc[model.n_layers - 1]
    assert last["kl_logit"] > 1.0
    assert last["kl_lens"] < 1e-3
    lens = open_lens(found.lens, model)
    states = torch.randn(10, 48)
    torch.testing.assert_close(lens(states, model.n_layers - 1), states @ turn.T, rtol=1e-2, atol=1e-2)


@pytest.mark.filterwarnings("ignore::layerlens.errors.Notice")
@pytest.mark.parametrize("family", ["llama", "gemma2", "opt"])
def test_the_gain_is_the_divergence_from_the_last_layer_on_texts_not_used(family, tmp_path):
    model = tiny(family)
    found = fitted(model, tmp_path)
    split = split_texts(model, ll.datasets.from_prompts(texts(20)), LinearOptions())
    used = {text.token_ids for text in (*split.fitted, *split.chosen_by)}
    assert not used & {text.token_ids for text in split.measured}
    states = rows_of(model, split.measured, split.skip)
    stored = read_lens("linear", found.path)

    for row in found.gain.to_dict("records"):
        layer = int(row["layer"])
        plain = states[layer]
        mapped = plain @ stored.weights[layer].double().numpy().T + stored.biases[layer].double().numpy()
        for name, of_layer in (("kl_logit", plain), ("kl_lens", mapped)):
            assert row[name] == pytest.approx(plain_kl(model, of_layer, states[-1]), rel=1e-4, abs=1e-5)
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
    assert found.gain["n_tokens"].tolist() == [states.shape[1]] * model.n_layers
    assert found.gain["n_texts"].tolist() == [len(split.measured)] * model.n_layers


@pytest.mark.filterwarnings("ignore::layerlens.errors.Notice")
def test_what_was_fitted_is_in_the_file(tmp_path):
    model = tiny("llama")
    found = fitted(model, tmp_path, skip_first=2, max_length=64)
    said = read_lens("linear", found.path).fit
    assert json.loads(json.dumps(said)) == json.loads(json.dumps(dict(found.said)))
    assert (said["max_length"], said["skipped"], said["n_texts"], said["n_texts_chosen_by"]) == (64, 2, 16, 2)
    assert said["gain"]["kl_lens"] == found.gain["kl_lens"].tolist()
    assert found.lens == f"linear:{found.path}"
    assert not list(tmp_path.glob("*.fitting"))


@pytest.mark.filterwarnings("ignore::layerlens.errors.Notice")
def test_what_texts_share_at_their_beginning_is_left_out():
    model = tiny("llama")
    prompts = ll.datasets.from_prompts([f"You are helpful. {text}" for text in texts(10, n_words=8)])
    split = split_texts(model, prompts, LinearOptions())
    begins = {text.token_ids[: split.skip] for part in (split.fitted, split.chosen_by, split.measured) for text in part}
    assert len(begins) == 1
    assert split.skip > 5


def test_texts_are_dealt_out_whole_each_once_and_by_the_seed():
    model = tiny("llama")
    given = texts(30) * 2
    parts = []
    for seed in (0, 1):
        split = split_texts(model, ll.datasets.from_prompts(given), LinearOptions(seed=seed))
        ids = [[text.token_ids for text in part] for part in (split.fitted, split.chosen_by, split.measured)]
        assert [len(part) for part in ids] == [24, 3, 3]
        assert len({one for part in ids for one in part}) == 30
        parts.append(ids[2])
    assert parts[0] != parts[1]


def test_long_texts_are_cut_and_said():
    model = tiny("llama")
    with pytest.warns(Notice, match="10 of 10 texts"):
        split = split_texts(model, ll.datasets.from_prompts(texts(10)), LinearOptions(max_length=16))
    assert {len(text.token_ids) for text in split.fitted} == {16}


def test_too_few_texts_or_tokens_are_refused_with_what_is_needed(tmp_path):
    model = tiny("llama")
    with refused(ll.PromptError, "prompts", 4, advice="5"):
        fitted(model, tmp_path, texts(4))
    with refused(ll.PromptError, "prompts", advice="49"):
        fitted(model, tmp_path, texts(6, n_words=2))
    assert not list(tmp_path.iterdir())
    with pytest.warns(Notice, match="480"):
        fitted(model, tmp_path, texts(6))


def test_states_that_are_no_numbers_are_refused_with_their_text(tmp_path):
    hf = deepcopy(tiny("llama").hf)
    model = ll.load(hf, tokenizer=tiny("llama").tokenizer)
    prompts = [ll.Prompt(f"text {index}", text) for index, text in enumerate([*texts(19), "zzzz zz zzz zz zz"])]
    spoiled = {one for word in ("zz", " zz", "zzzz") for one in model.tokenizer(word).input_ids} - {
        one for text in texts(19) for one in model.tokenizer(text).input_ids
    }
    assert spoiled
    with torch.no_grad():
        hf.model.embed_tokens.weight[list(spoiled)] = float("inf")
    model = ll.load(hf, tokenizer=tiny("llama").tokenizer)
    with refused(ll.PromptError, "prompts", "text 19", problem="layer"):
        fitted(model, tmp_path, prompts)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"max_length": 1}, "max_length"),
        ({"skip_first": -1}, "skip_first"),
        ({"skip_first": 512}, "skip_first"),
        ({"seed": 0.5}, "seed"),
        ({"kind": "logit"}, "kind"),
        ({"steps": 3}, "steps"),
    ],
)
def test_options_that_cannot_be_are_refused(options, option, tmp_path):
    with refused(ll.OptionError, option):
        fitted(tiny("llama"), tmp_path, **options)


def test_no_file_is_written_over(tmp_path):
    model = tiny("llama")
    there = tmp_path / "there.safetensors"
    there.write_text("mine")
    with refused(ll.OptionError, "out", there, problem="already exists"):
        ll.fit_lens(model, texts(20), out=there)
    assert there.read_text() == "mine"
    with refused(ll.OptionError, "out", tmp_path / "lens.pt", advice="lens.safetensors"):
        ll.fit_lens(model, texts(20), out=tmp_path / "lens.pt")
    with refused(ll.OptionError, "out", advice="exists"):
        ll.fit_lens(model, texts(20), out=tmp_path / "no" / "lens.safetensors")


def test_a_text_that_is_longer_than_the_context_is_cut_there(tmp_path):
    model = tiny("llama")
    assert model.context_length == 128
    long = [" ".join([text] * 4) for text in texts(20)]
    with pytest.warns(Notice, match="cut after 128 tokens"):
        found = fitted(model, tmp_path, prompts=long, max_length=4096)
    assert read_lens("linear", found.path).d_model == model.d_model
