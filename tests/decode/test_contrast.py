"""DoLa and SLED against their formulas written out in float64, with loops over layers and tokens."""

import math

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerlens.decode.contrast import SLED, DoLa, alignment, divergence, half
from layerlens.decode.criteria import CRITERIA
from layerlens.decode.readouts import Readouts
from layerlens.decode.strategies import Fixed, Last, Valley
from layerlens.errors import OptionError
from layerlens.models import Unembed
from tests.conftest import tiny
from tests.reference import own_readout, structure, watch
from tests.refusals import refused

MODELS = {
    "llama, untied": ("llama", {"num_hidden_layers": 9, "tie_word_embeddings": False}),
    "llama, tied": ("llama", {"num_hidden_layers": 9, "tie_word_embeddings": True}),
    "gemma2, soft-cap, tied": ("gemma2", {"tie_word_embeddings": True}),
    "gemma2, soft-cap, untied": ("gemma2", {"tie_word_embeddings": False}),
    "opt, projected": ("opt", {"num_hidden_layers": 6}),
}


def half_written_out(name: str, n_layers: int, tied: bool) -> list[int]:
    """transformers' rule for a model of more than three layers."""
    middle = n_layers // 2
    first, stop = (0, min(middle, 20) if n_layers > 40 else middle) if name == "low" else (middle, n_layers)
    if name == "low" and tied:
        return [layer for layer in range(2, stop) if layer % 2 == 0] or [2]
    if name == "high" and n_layers > 40:
        first = n_layers - 20
    return [layer for layer in range(first, stop) if (layer - first) % 2 == 0]


def dola(last, early, *, kind="published", per="batch", relative_top=0.1):
    """Scores [rows, vocab], the chosen candidate of each row, and by how much it won; z [rows, vocab] and a list."""
    log_last = scipy.special.log_softmax(last, axis=1)
    log_early = [scipy.special.log_softmax(layer, axis=1) for layer in early]
    distance = np.zeros((len(early), len(last)))
    for layer in range(len(early)):
        for row in range(len(last)):
            p, q = np.exp(log_last[row]), np.exp(log_early[layer][row])
            if kind == "js":
                distance[layer, row] = scipy.spatial.distance.jensenshannon(p, q) ** 2
            else:
                mean = (p + q) / 2
                distance[layer, row] = sum(mean * (np.log(mean) - log_last[row])) / 2
                distance[layer, row] += sum(mean * (np.log(mean) - log_early[layer][row])) / 2
    if per == "batch":
        distance[:] = distance.mean(1, keepdims=True)
    best = distance.argmax(0)
    order = np.sort(distance, axis=0)
    lead = order[-1] - order[-2] if len(early) > 1 else np.full(len(last), np.inf)
    scores = np.full(last.shape, -np.inf)
    for row in range(len(last)):
        threshold = relative_top * np.exp(log_last[row]).max()
        for token in range(last.shape[1]):
            if np.exp(log_last[row, token]) >= threshold:
                scores[row, token] = log_last[row, token] - log_early[best[row]][row, token]
    return scores, best, lead


def agreements(early, last, tokens):
    """max(0, cos(p − e_i, z_l − z_N))² of one row for each token i, the vectors p − e_i built one by one."""
    probs, way = scipy.special.softmax(early), early - last
    found = []
    for token in tokens:
        target = probs.copy()
        target[token] = 0.0
        target[token] = -target.sum()  # p − e_i at i: the p of all others, which p − 1 would round away
        lengths = np.linalg.norm(target) * np.linalg.norm(way)
        found.append(max(0.0, target @ way / lengths) ** 2 if lengths else 0.0)
    return np.array(found)


def sled(last, early, *, rate=2.0, scale=10, steps=1, lower_bound=-100.0):
    """Evolved logits [rows, vocab] of z_N [rows, vocab] and a list of z_l."""
    logits = np.zeros(last.shape)
    for row in range(len(last)):
        top = np.argsort(-last[row])[:scale]
        weights, parts = [], []
        for layer in early:
            m = agreements(layer[row], last[row], top)
            weights.append(m.sum())
            parts.append(m / m.sum() if m.sum() else m)
        latent = np.zeros(last.shape[1])
        for weight, part in zip(weights, parts, strict=True):
            latent[top] += weight / sum(weights) * part
        z = last[row].copy()
        for t in range(steps):
            z = z - rate * (1 - t / steps) * (scipy.special.softmax(z) - latent)
        logits[row] = z[top].min() + lower_bound  # published: lower_bound itself
        logits[row, top] = z[top]
    return logits


def states_of(model, ids):
    """States of layers 0..L at the last four positions of each text, by plain hooks, as float32 rows."""
    seen = watch(model.hf, structure(model.hf)[0], ids)
    return [stream[:, -4:].flatten(0, 1).float() for stream in (seen.h_in[0], *seen.h_out)]


def setting(name):
    """The readouts of a tiny model's states; logits by layer with and without the final norm, float64."""
    family, changes = MODELS[name]
    model = tiny(family, **changes)
    ids = torch.randint(3, 300, (3, 12), generator=torch.Generator().manual_seed(5))
    states = states_of(model, ids)
    return (*read_out(model, states), model)


def read_out(model, states):
    tail = structure(model.hf)[1]
    whole = own_readout(model.hf, tail)
    bare = own_readout(model.hf, [module for module in tail if isinstance(module, torch.nn.Linear)])
    together = torch.stack(states).double()
    logits = {True: list(whole(together).numpy()), False: list(bare(together).numpy())}
    tied = bool(model.hf.config.tie_word_embeddings)

    def readouts():
        uniform = torch.zeros(len(states[0]))
        return Readouts(model.unembed, dict(enumerate(states)), len(states) - 1, uniform, tied=tied)

    return readouts, logits, tied


def planted(rows):
    """Readouts whose states are their logits: rows of layers of logits."""
    table = torch.tensor(rows, dtype=torch.float32)
    states = {layer: table[:, layer] for layer in range(table.shape[1])}
    return Readouts(Unembed([], torch.eye(table.shape[2])), states, table.shape[1] - 1, torch.zeros(len(table)))


def assert_same_scores(found, expected, last, relative_top):
    """Finite scores to 1e-4; minus infinity at the same tokens, those at the threshold to rounding left out."""
    found = found.double().numpy()
    log_probs = scipy.special.log_softmax(last, axis=1)
    clear = np.abs(log_probs - log_probs.max(1, keepdims=True) - math.log(relative_top)) > 1e-4
    assert clear.mean() > 0.99
    assert (np.isneginf(found) == np.isneginf(expected))[clear].all()
    both = np.isfinite(found) & np.isfinite(expected)
    assert both.sum() >= len(found)
    np.testing.assert_allclose(found[both], expected[both], atol=1e-4, rtol=1e-5)


DOLA = [
    {},
    {"candidates": "high"},
    {"divergence": "js"},
    {"norm": True},
    {"per": "row"},
    {"relative_top": 0.01},
    {"candidates": (0, 1, 2, 3), "per": "row", "divergence": "js", "norm": True, "relative_top": 0.5},
    {"candidates": (3,)},
]


@pytest.mark.parametrize("options", DOLA, ids=str)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_dola_is_its_formula(name, options):
    readouts, logits, tied, model = setting(name)
    candidates = options.get("candidates", "low")
    layers = half_written_out(candidates, model.n_layers, tied) if isinstance(candidates, str) else candidates
    norm, top = options.get("norm", False), options.get("relative_top", 0.1)
    last = logits[True][-1]
    expected, _, lead = dola(
        last,
        [logits[norm][layer] for layer in layers],
        kind=options.get("divergence", "published"),
        per=options.get("per", "batch"),
        relative_top=top,
    )
    assert lead.min() > 1e-4, "no choice between layers hangs on rounding"

    strategy = DoLa(**options)
    assert list(strategy.layers(model.n_layers, tied)) == [*layers, model.n_layers]
    given = readouts()
    choice = strategy.choose(given)
    assert_same_scores(choice.logits, expected, last, top)
    assert choice.last_token_id.tolist() == last.argmax(1).tolist()
    assert choice.selected_layer.tolist() == [model.n_layers] * len(last)
    assert given.projections.tolist() == [len(layers) + 1] * len(last)


SLEDS = [
    {},
    {"steps": 3, "rate": 1.5},
    {"scale": 5, "rate": 0.5, "lower_bound": -1000.0},
    {"scale": 20, "norm": True},
    {"scale": 1},
    {"scale": 1000, "steps": 2},
]


@pytest.mark.parametrize("options", SLEDS, ids=str)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_sled_is_its_formula(name, options):
    readouts, logits, _, model = setting(name)
    options = dict(options)
    strategy = SLED(**options)
    early = logits[options.pop("norm", False)][:-1]
    last = logits[True][-1]
    expected = sled(last, early, **options)

    given = readouts()
    choice = strategy.choose(given)
    assert list(strategy.layers(model.n_layers)) == list(range(model.n_layers + 1))
    np.testing.assert_allclose(choice.logits.numpy(), expected, atol=1e-4, rtol=1e-5)
    assert choice.last_token_id.tolist() == last.argmax(1).tolist()
    assert choice.selected_layer.tolist() == [model.n_layers] * len(last)
    assert given.projections.tolist() == [model.n_layers + 1] * len(last)


@torch.no_grad()
def test_options_make_a_difference():
    """Each option changes the scores of the tiny model by far more than the tolerance above."""
    readouts, _, _, _ = setting("llama, untied")
    for strategies in (
        [DoLa(candidates=(0, 1, 2, 3), **options) for options in ({}, {"norm": True}, {"per": "row"})],
        [DoLa(candidates="low"), DoLa(candidates="high")],
        [SLED(), SLED(norm=True), SLED(steps=3), SLED(rate=1.0), SLED(scale=5)],
    ):
        scores = [strategy.choose(readouts()).logits for strategy in strategies]
        for index, one in enumerate(scores):
            for other in scores[:index]:
                both = one.isfinite() & other.isfinite()
                assert (one - other)[both].abs().max() > 1e-2


def test_rows_choose_for_themselves_or_together():
    """Row 0 differs most from layer 0, row 1 from layer 1, and row 0 is the farther off."""
    near, far, farther = [2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [-3.0, 1.0, 4.0]
    rows = [[farther, near, near], [near, far, near]]
    chosen = {"row": (farther, far), "batch": (farther, near)}
    for per, layers in chosen.items():
        for kind in ("published", "js"):
            scores = DoLa(candidates=(0, 1), per=per, divergence=kind, relative_top=1e-6).choose(planted(rows)).logits
            expected = [
                scipy.special.log_softmax(near) - scipy.special.log_softmax(early) for early in np.array(layers)
            ]
            np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert DoLa(per="batch").whole_batch
    assert not DoLa(per="row").whole_batch
    assert not SLED().whole_batch


def test_published_and_js_divergence_choose_different_layers():
    """A layer that all but rules a likely word out is far by the published measure only."""
    last, ruled_out, spread = [0.0, 0.0, 0.0, -2.0], [0.0, 0.0, 0.0, -60.0], [0.0, -2.0, -2.0, -2.0]
    last_log = scipy.special.log_softmax(last)
    for kind, early in (("published", ruled_out), ("js", spread)):
        choice = DoLa(candidates=(0, 1), divergence=kind, relative_top=0.001).choose(
            planted([[ruled_out, spread, last]])
        )
        np.testing.assert_allclose(choice.logits[0], last_log - scipy.special.log_softmax(early), atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), vocab=st.integers(2, 60), spread=st.sampled_from([0.0, 0.3, 3.0, 12.0]))
def test_divergences_agree_with_scipy(seed, vocab, spread):
    """js is scipy's distance squared and at most ln 2; published, KL from the mean to each; float32, 1e-5."""
    generator = torch.Generator().manual_seed(seed)
    left = (torch.randn(2, 1, vocab, generator=generator) * spread).log_softmax(2)
    right = (torch.randn(2, 3, vocab, generator=generator) * spread).log_softmax(2)
    p, q = left.double().exp().numpy(), right.double().exp().numpy()
    p, q = p / p.sum(2, keepdims=True), q / q.sum(2, keepdims=True)
    js = divergence(left, right, "js")
    assert js.shape == (2, 3)
    assert ((js >= 0) & (js <= math.log(2))).all()
    # scipy's distance is a root: of what rounds below zero it is NaN, meant as 0
    squared = np.nan_to_num(scipy.spatial.distance.jensenshannon(np.broadcast_to(p, q.shape), q, axis=2)) ** 2
    np.testing.assert_allclose(js, squared, atol=1e-5)
    mean = (p + q) / 2
    published = (scipy.special.rel_entr(mean, p) + scipy.special.rel_entr(mean, q)).sum(2) / 2
    np.testing.assert_allclose(divergence(left, right, "published"), published, atol=1e-5, rtol=1e-5)


def jensen_shannon(left, right):
    """½ [KL(left‖M) + KL(right‖M)] of two rows of logits, in long doubles."""
    p, q = (scipy.special.softmax(np.asarray(row, dtype=np.longdouble)) for row in (left, right))
    mean = (p + q) / 2
    return float((p * np.log(p / mean)).sum() + (q * np.log(q / mean)).sum()) / 2


@pytest.mark.parametrize("apart", [12.0, 20.0, 30.0, 60.0])
def test_rounding_chooses_no_layer_where_all_are_as_far_as_can_be(apart):
    """Each candidate is sure of a word of its own, so that all lie within 0.02 of ln 2 or much closer."""
    for seed in range(12):
        random = np.random.default_rng(seed)
        rows = random.normal(size=(7, 400)).astype(np.float32)
        for layer in range(7):
            rows[layer, layer] += np.float32(apart)
        exact = [jensen_shannon(rows[layer], rows[6]) for layer in range(6)]
        distances = math.log(2) - np.array(exact)
        assert distances.max() < 2e-2
        found = divergence(
            torch.tensor(rows[6]).log_softmax(0).view(1, 1, -1), torch.tensor(rows[:6]).log_softmax(1)[None], "js"
        )
        assert found.max() <= math.log(2)
        clear = np.sort(distances)[1] > 1.001 * np.sort(distances)[0] and np.sort(distances)[1] > 1e-14
        assert not clear or found.argmax() == np.argmax(exact)
        scores = DoLa(candidates=tuple(range(6)), divergence="js", relative_top=0).choose(planted([rows.tolist()]))
        last, early = (scipy.special.log_softmax(rows[layer].astype(float)) for layer in (6, int(np.argmax(exact))))
        assert not clear or np.allclose(scores.logits[0], last - early, atol=1e-4)


def test_float32_would_choose_another_layer():
    """What the test above is for: the formula in float32 rounds the candidates' order away."""
    wrong = 0
    for seed in range(12):
        random = np.random.default_rng(seed)
        rows = random.normal(size=(7, 400)).astype(np.float32)
        rows[range(7), range(7)] += np.float32(20.0)
        logs = torch.tensor(rows).log_softmax(1)
        mean = torch.logaddexp(logs[:6], logs[6]) - math.log(2)
        naive = ((logs[:6].exp() * (logs[:6] - mean)).sum(1) + (logs[6].exp() * (logs[6] - mean)).sum(1)) / 2
        wrong += int(naive.argmax()) != int(np.argmax([jensen_shannon(rows[layer], rows[6]) for layer in range(6)]))
    assert wrong > 0


@pytest.mark.parametrize("kind", ["published", "js"])
def test_of_layers_that_differ_alike_the_one_named_first_counts(kind):
    last, one, other = [3.0, 0.0, 1.0], [0.0, 1.0, 3.0], [0.0, 1.0, 3.5]
    for candidates in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        layers = dict(zip(candidates, ([*one], [*one], [*one]), strict=True))
        layers[candidates[1]] = other
        layers[candidates[2]] = other
        rows = [[layers[0], layers[1], layers[2], last]]
        early = torch.tensor([[layers[layer] for layer in candidates]]).log_softmax(2)
        assert divergence(torch.tensor([[last]]).log_softmax(2), early, kind).argmax(1).tolist() == [1]
        scores = DoLa(candidates=candidates, divergence=kind, relative_top=0).choose(planted(rows)).logits
        np.testing.assert_allclose(
            scores[0], scipy.special.log_softmax(last) - scipy.special.log_softmax(other), atol=1e-5
        )


def test_rows_that_have_ended_have_no_say_in_the_batch_s_layer():
    near, far, farther = [2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [-3.0, 1.0, 4.0]
    rows = [[farther, near, near], [near, far, near]]
    for alive, early in ((None, farther), ([True, True], farther), ([False, True], far), ([True, False], farther)):
        readouts = planted(rows)
        readouts.alive = None if alive is None else torch.tensor(alive)
        logits = DoLa(candidates=(0, 1), relative_top=1e-6).choose(readouts).logits
        row = 1 if alive == [False, True] else 0
        expected = scipy.special.log_softmax(near) - scipy.special.log_softmax(early)
        np.testing.assert_allclose(logits[row], expected, atol=1e-5)


STRATEGIES = [
    *(Valley(window=4, criterion=criterion) for criterion in CRITERIA),
    *(DoLa(candidates=(0, 1, 2), divergence=kind) for kind in ("published", "js")),
    *(Last(), Fixed(1), SLED(), SLED(scale=3, rate=5.0, steps=3)),
]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), shift=st.sampled_from([-4096.0, -300.0, -100.0, 100.0, 4096.0]))
@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_a_constant_added_to_all_logits_changes_nothing(strategy, seed, shift):
    """The layer, the token and the probabilities stay; the logits are multiples of 1/256, so that none is rounded.

    What SLED makes of them is, by up to 0.0005 a step beside 4096: a token counts where it leads by more.
    """
    random = np.random.default_rng(seed)
    rows = np.round(256 * random.normal(scale=3, size=(3, 5, 30))) / 256
    plain, moved = (strategy.choose(planted((rows + constant).tolist())) for constant in (0.0, shift))
    assert moved.selected_layer.tolist() == plain.selected_layer.tolist()
    first, second = plain.logits.topk(2, dim=1).values.unbind(1)
    clear = first - second > (0.01 if isinstance(strategy, SLED) else -1)
    assert moved.logits.argmax(1)[clear].tolist() == plain.logits.argmax(1)[clear].tolist()
    torch.testing.assert_close(moved.logits.softmax(1), plain.logits.softmax(1), atol=5e-3, rtol=0)


def test_a_word_that_one_side_rules_out():
    left = torch.tensor([[[0.5, 0.5, 0.0]]]).log()
    right = torch.tensor([[[0.5, 0.5, 0.0], [0.25, 0.25, 0.5], [0.0, 0.0, 1.0]]]).log()
    squared = [scipy.spatial.distance.jensenshannon([0.5, 0.5, 0.0], row) ** 2 for row in right[0].exp().numpy()]
    np.testing.assert_allclose(divergence(left, right, "js")[0], squared, atol=1e-6)
    assert divergence(left, right, "js")[0, 2].item() == pytest.approx(math.log(2), abs=1e-6)
    assert divergence(left, right, "published")[0].tolist() == [0.0, math.inf, math.inf]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), vocab=st.integers(3, 60), gap=st.sampled_from([0.0, 5.0, 15.0, 30.0]))
def test_alignment_agrees_with_whole_vectors(seed, vocab, gap):
    """Early layers that are sure of a word by up to 30 nats, where 1 − p is lost in float32; 1e-4."""
    generator = torch.Generator().manual_seed(seed)
    early, last = (torch.randn(2, vocab, generator=generator) * 2 for _ in range(2))
    early[:, 0] = early[:, 1:].amax(1) + gap
    ids = torch.tensor([[0, 1, 2], [2, 0, 1]])
    expected = [
        agreements(e, z, row)
        for e, z, row in zip(early.double().numpy(), last.double().numpy(), ids.tolist(), strict=True)
    ]
    np.testing.assert_allclose(alignment(early, last, ids), expected, atol=1e-4)


def test_sled_survives_banned_words():
    """A bias of minus infinity in every layer: banned words point nowhere, the others evolve as without them."""
    curve = [[1.0, 3.0, 2.0], [0.5, 2.0, 2.5], [1.0, 2.0, 3.0]]
    states = {layer: torch.tensor([[*words, 0.0]]) for layer, words in enumerate(curve)}
    head = Unembed([], torch.eye(4), bias=torch.tensor([0.0, 0.0, 0.0, -math.inf]))
    logits = SLED(scale=3).choose(Readouts(head, states, 2, torch.zeros(1))).logits
    np.testing.assert_allclose(logits[:, :3], SLED(scale=3).choose(planted([curve])).logits, rtol=1e-6)
    assert logits[0, 3] < -99


def test_dola_without_a_threshold_excludes_nothing():
    scores = DoLa(relative_top=0).choose(planted([[[0.0, 1.0, 2.0], [1.0, 1.0, 1.0], [100.0, 1.0, 0.0]]])).logits
    assert torch.isfinite(scores).all()


def test_sled_leaves_logits_that_no_layer_points_away_from():
    """Early layers equal to the last have no direction: the logits of the most probable tokens stay."""
    logits = SLED(scale=2).choose(planted([[[1.0, 3.0, 2.0]] * 3])).logits
    assert logits.tolist() == [[-98.0, 3.0, 2.0]]


@pytest.mark.parametrize(
    ("name", "n_layers", "tied", "layers"),
    [
        ("low", 1, True, [0]),
        ("low", 1, False, [0]),
        ("high", 1, False, [0]),
        ("low", 2, True, [1]),
        ("low", 2, False, [0]),
        ("high", 2, True, [1]),
        ("low", 4, True, [2]),
        ("low", 4, False, [0]),
        ("high", 4, True, [2]),
        ("low", 5, True, [2]),
        ("high", 5, False, [2, 4]),
        ("low", 12, True, [2, 4]),
        ("low", 12, False, [0, 2, 4]),
        ("high", 12, True, [6, 8, 10]),
        ("low", 32, False, [0, 2, 4, 6, 8, 10, 12, 14]),
        ("low", 40, True, [2, 4, 6, 8, 10, 12, 14, 16, 18]),
        ("high", 40, False, [20, 22, 24, 26, 28, 30, 32, 34, 36, 38]),
        ("low", 41, False, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]),
        ("high", 41, True, [21, 23, 25, 27, 29, 31, 33, 35, 37, 39]),
        ("low", 80, True, [2, 4, 6, 8, 10, 12, 14, 16, 18]),
        ("high", 80, False, [60, 62, 64, 66, 68, 70, 72, 74, 76, 78]),
    ],
)
def test_low_and_high_are_the_layers_that_transformers_takes(name, n_layers, tied, layers):
    assert list(half(name, n_layers, tied=tied)) == layers
    assert list(DoLa(candidates=name).layers(n_layers, tied)) == [*layers, n_layers]


@pytest.mark.parametrize("tied", [True, False])
def test_a_half_is_never_empty_nor_the_last_layer(tied):
    """Where transformers has no layer to contrast (3 layers, tied, low), layer 2 is taken."""
    assert half("low", 3, tied=True) == (2,)
    for n_layers in range(1, 101):
        for name in ("low", "high"):
            assert all(0 <= layer < n_layers for layer in half(name, n_layers, tied=tied))
            assert half(name, n_layers, tied=tied)


@pytest.mark.parametrize(
    ("make", "option", "given", "advice"),
    [
        (lambda: DoLa(candidates="middle"), "candidates", "middle", "low, high"),
        (lambda: DoLa(candidates=()), "candidates", (), "tuple"),
        (lambda: DoLa(candidates=(1, -1)), "candidates", (1, -1), "tuple"),
        (lambda: DoLa(candidates=[1, 2]), "candidates", [1, 2], "tuple"),
        (lambda: DoLa(candidates=(1, 4)).layers(4), "candidates", (1, 4), "0..3"),
        (lambda: DoLa(divergence="kl"), "divergence", "kl", "published"),
        (lambda: DoLa(per="token"), "per", "token", "batch"),
        (lambda: DoLa(relative_top=1.5), "relative_top", 1.5, "0 to 1"),
        (lambda: DoLa(relative_top=math.nan), "relative_top", math.nan, "0 to 1"),
        (lambda: SLED(scale=0), "scale", 0, "from 1"),
        (lambda: SLED(scale=2.0), "scale", 2.0, "from 1"),
        (lambda: SLED(steps=True), "steps", True, "from 1"),
        (lambda: SLED(rate=-0.5), "rate", -0.5, "0 or more"),
        (lambda: SLED(rate=math.inf), "rate", math.inf, "number"),
        (lambda: SLED(lower_bound="low"), "lower_bound", "low", "number"),
        (lambda: SLED(lower_bound=0.0), "lower_bound", 0.0, "below 0"),
    ],
)
def test_options_out_of_range_are_refused(make, option, given, advice):
    with refused(OptionError, option, given, advice=advice):
        make()


@torch.no_grad()
def test_dola_and_sled_on_a_real_model(smollm2):
    """SmolLM2: tied, 30 layers, 49,152 words; the same tolerance, 1e-4."""
    ids = torch.tensor([smollm2.tokenizer("The capital of France is the city of").input_ids])
    readouts, logits, tied = read_out(smollm2, [state[-1:] for state in states_of(smollm2, ids)])
    assert tied
    last = logits[True][-1]
    expected, _, lead = dola(last, [logits[False][layer] for layer in range(2, 15, 2)])
    assert lead.min() > 1e-4
    assert_same_scores(DoLa().choose(readouts()).logits, expected, last, 0.1)
    np.testing.assert_allclose(SLED().choose(readouts()).logits, sled(last, logits[False][:-1]), atol=1e-4, rtol=1e-5)
