"""Sampled tokens are distributed with drafts as they are without: chi-square against probabilities that are computed
from the model in float64, with a loop of plain Python."""

import copy
from collections import Counter
from functools import cache
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, chisquare
from torch import nn

import layerlens as ll
from layerlens.decode.sampling import Sampler
from layerlens.decode.speculative import loop
from layerlens.decode.speculative.acceptance import sampled_choice, without_replacement
from layerlens.decode.speculative.fixed import FixedSkip
from layerlens.models.tiny import tiny_model, tiny_tokenizer
from tests.decode import plain as plain_loop
from tests.decode.speculative.drafts import Eager, drafted, n_accepted_and_rejected, plain
from tests.thorough import some

GOOD, BAD = 1e-4, 1e-6  # seeds are fixed: a right loop is above the first, a wrong one below the second
N_MANY, N_FEW = 20_000, 1_000
WIDTHS = [1, 3, 5]

# what the whole model draws from, and what the draft does
SHAPES = {
    "both everywhere": ([0.35, 0.25, 0.2, 0.1, 0.06, 0.04], [0.1, 0.2, 0.15, 0.25, 0.05, 0.25]),
    "the same": ([0.4, 0.3, 0.15, 0.1, 0.05, 0.0], [0.4, 0.3, 0.15, 0.1, 0.05, 0.0]),
    "tokens that are never drafted": ([0.3, 0.3, 0.2, 0.1, 0.1, 0.0], [0.0, 0.5, 0.0, 0.3, 0.2, 0.0]),
    "tokens that are only drafted": ([0.6, 0.0, 0.4, 0.0, 0.0, 0.0], [0.2, 0.3, 0.1, 0.2, 0.1, 0.1]),
    "nothing in common": ([0.5, 0.3, 0.2, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.6, 0.3, 0.1]),
    "one token can be drawn": ([0.0, 1.0, 0.0, 0.0, 0.0, 0.0], [0.3, 0.1, 0.2, 0.2, 0.1, 0.1]),
    "one token can be drafted": ([0.3, 0.25, 0.2, 0.15, 0.1, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]),
    "unlike sizes": ([0.9, 0.06, 0.02, 0.01, 0.005, 0.005], [1e-6, 0.5, 0.49, 0.009999, 0.0, 0.0]),
}


def p_value(found: Counter, probabilities: dict) -> float:
    """Of the chi-square test; 0 where something was drawn that cannot be. Rare outcomes count together."""
    n = sum(found.values())
    possible = {outcome: n * probability for outcome, probability in probabilities.items() if probability > 0}
    assert abs(sum(possible.values()) - n) < 1e-6 * n
    if set(found) - set(possible):
        return 0.0
    often = [outcome for outcome, expected in possible.items() if expected >= 5]
    observed = [found[outcome] for outcome in often]
    expected = [possible[outcome] for outcome in often]
    if len(often) < len(possible):
        observed.append(n - sum(observed))
        expected.append(n - sum(expected))
    if len(observed) == 1:
        return 1.0
    return float(chisquare(observed, np.array(expected) * (n / sum(expected))).pvalue)


def sampler(seed=0):
    return Sampler(ll.GenerateOptions(temperature=1.0), torch.tensor([], dtype=torch.long), None, 1, seed)


def draws(p, q, width, n, choose=sampled_choice):
    """Drafts and what was chosen of them, n times."""
    own, p, q = sampler(), torch.tensor(p), torch.tensor(q)
    pairs = []
    for _ in range(n):
        tokens = without_replacement(q, width, own.generator)
        pairs.append((tokens, choose(p, tokens, q, own)))
    return pairs


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_choice_is_distributed_as_the_whole_model_draws(shape, width):
    """And the first token of a draft is kept as often as can be: with probability Σ min(p, q)."""
    p, q = SHAPES[shape]
    pairs = draws(p, q, width, N_MANY if (shape, width) == ("both everywhere", 3) else N_FEW)
    assert p_value(Counter(token for _, token in pairs), dict(enumerate(p))) > GOOD
    least = sum(map(min, p, q))
    n_kept = sum(token == tokens[0] for tokens, token in pairs)
    assert binomtest(n_kept, len(pairs), min(1.0, least)).pvalue > GOOD
    n_places = min(width, sum(one > 0 for one in q))
    assert all(len(tokens) == len(set(tokens)) == n_places for tokens, _ in pairs)


def test_more_tokens_at_a_place_are_accepted_more_often():
    p, q = SHAPES["both everywhere"]
    shares = [np.mean([token in tokens for tokens, token in draws(p, q, width, N_FEW)]) for width in WIDTHS]
    assert shares[0] + 0.1 < shares[1] < shares[2] - 0.02


@pytest.mark.parametrize("width", [1, 2, 3])
def test_tokens_of_a_place_are_drawn_one_after_the_other(width):
    """The probability of a sequence is the product of each token's share of what is left."""
    q = [0.5, 0.0, 0.3, 0.15, 0.05]
    own = torch.Generator().manual_seed(0)
    found = Counter(tuple(without_replacement(torch.tensor(q), width, own)) for _ in range(N_MANY // 4))
    expected = {}
    for tokens in permutations(range(5), width):
        left, probability = 1.0, 1.0
        for token in tokens:
            probability *= q[token] / left if left > 1e-9 else 0.0
            left -= q[token]
        expected[tokens] = probability
    assert p_value(found, expected) > GOOD


def kept_too_often(p, tokens, q, own):
    """Accepts where u < 2p / q."""
    left = p
    for token in tokens:
        if float(torch.rand(1, generator=own.generator)) * q[token] < 2 * left[token]:
            return token
        rest = (left - q).clamp_min(0)
        left = rest / rest.sum() if rest.sum() > 0 else left
        q = q.index_fill(0, torch.tensor([token]), 0.0)
        q = q / q.sum().clamp_min(1e-30)
    return int(own.drawn(left.unsqueeze(0)))


def without_a_remainder(p, tokens, q, own):
    """After a token that is thrown away, draws from p as it is."""
    for token in tokens:
        if float(torch.rand(1, generator=own.generator)) * q[token] < p[token]:
            return token
    return int(own.drawn(p.unsqueeze(0)))


def of_one_draft(p, tokens, q, own):
    """Takes all tokens of a place for draws from q, with replacement."""
    left = p
    for token in tokens:
        if float(torch.rand(1, generator=own.generator)) * q[token] < left[token]:
            return token
        rest = (left - q).clamp_min(0)
        left = rest / rest.sum() if rest.sum() > 0 else left
    return int(own.drawn(left.unsqueeze(0)))


@pytest.mark.parametrize(
    ("mistake", "width", "shape"),
    [
        (kept_too_often, 1, "both everywhere"),
        (kept_too_often, 3, "both everywhere"),
        (without_a_remainder, 1, "both everywhere"),
        (of_one_draft, 5, "tokens that are only drafted"),
    ],
)
def test_mistakes_in_a_choice_are_seen(mistake, width, shape):
    p, q = SHAPES[shape]
    found = Counter(token for _, token in draws(p, q, width, 2_500, mistake))
    assert p_value(found, dict(enumerate(p))) < BAD


PROMPTS = [[5, 9, 3, 11], [7, 13]]
OPTIONS = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "max_new_tokens": 4}
N_ROWS = 200  # of each prompt


@cache
def small(n_readout: int | None = None) -> ll.Model:
    """A llama of 16 tokens, two of whose four blocks do less; perhaps with a readout of more entries than that."""
    hf = tiny_model("llama", vocab_size=16, tie_word_embeddings=False)
    if n_readout is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            hf.lm_head = nn.Linear(48, n_readout, bias=False)
            nn.init.normal_(hf.lm_head.weight, std=0.3)
    with torch.no_grad():
        for block in hf.model.layers[1:3]:
            for parameter in block.parameters():
                parameter.mul_(0.75)
    return ll.load(hf.eval(), tokenizer=tiny_tokenizer())


def warped(logits: torch.Tensor, temperature=1.0, top_k=0, top_p=1.0, **_) -> list[float]:
    """What is drawn from, written out: temperature, then the k best, then the fewest with a share of p."""
    values = (logits.double() / temperature).tolist()
    order = sorted(range(len(values)), key=lambda token: -values[token])[: top_k or None]
    probabilities = torch.tensor([values[token] for token in order], dtype=torch.float64).softmax(0).tolist()
    kept, before = {}, 0.0
    for token, probability in zip(order, probabilities, strict=True):
        if before < top_p:
            kept[token] = probability
        before += probability
    return [kept.get(token, 0.0) / sum(kept.values()) for token in range(len(values))]


def exact(model: ll.Model, prompt, window: int | None, ends=(), **options) -> dict:
    """The probability of each text, from passes in float64 over everything that can be emitted."""
    hf = copy.deepcopy(model.hf).double()
    texts, ended = {(): 1.0}, {}
    for _ in range(options["max_new_tokens"]):
        following = {}
        with torch.no_grad():
            ids = torch.tensor([[*prompt, *text] for text in texts])
            states = hf(ids, output_hidden_states=True, use_cache=False).hidden_states
            # the last of these has gone through the final norm
            logits = [hf.lm_head(hf.model.norm(states[layer][:, -1])) for layer in (1, 2, 3)]
            logits.append(hf.lm_head(states[4][:, -1]))
        for row, (text, probability) in enumerate(texts.items()):
            curve = plain_loop.entropy(torch.stack([of_layer[row] for of_layer in logits]), "shannon")
            layer = plain_loop.walk(curve, window) if window else 4
            for token, share in enumerate(warped(logits[layer - 1][row], **options)):
                if share > 0:
                    (ended if token in ends else following)[(*text, token)] = probability * share
        texts = following
    return texts | ended


def found_and_expected(emitted, model, window, ends=(), **options):
    """For each prompt what was emitted how often, and the probabilities."""
    half = len(emitted.outputs) // 2
    return [
        (Counter(map(tuple, outputs)), exact(model, prompt, window, ends, **options))
        for prompt, outputs in zip(PROMPTS, (emitted.outputs[:half], emitted.outputs[half:]), strict=True)
    ]


def p_of(emitted, *given, **options) -> float:
    """The smallest p-value of the two prompts, of whole texts and of their beginnings."""
    values = []
    for found, expected in found_and_expected(emitted, *given, **options):
        for length in range(1, options["max_new_tokens"] + 1):
            counts, chances = Counter(), Counter()
            for text, count in found.items():
                counts[text[:length]] += count
            for text, probability in expected.items():
                chances[text[:length]] += probability
            values.append(p_value(counts, chances))
    return min(values)


def rows(n=N_ROWS):
    return [prompt for prompt in PROMPTS for _ in range(n)]


def eager(model, *, tree, length=2):
    return Eager(model, FixedSkip(skipped=[1, 2], length=length, threshold=0.0, tree=tree, patience=None))


@pytest.mark.parametrize("window", [None, 3])
def test_probabilities_are_those_of_plain_sampling(window):
    """The expectation itself, against the loop without drafts."""
    model, strategy = small(), ll.Valley(window=window) if window else ll.Last()
    emitted = plain(model, strategy, rows(500), seed=1, **OPTIONS)
    assert p_of(emitted, model, window, **OPTIONS) > GOOD
    assert p_of(emitted, model, None if window else 3, **OPTIONS) < BAD, "the strategy is to act"
    for changed in ({"temperature": 0.9}, {"top_k": 4}, {"top_p": 0.8}):
        assert p_of(emitted, model, window, **(OPTIONS | changed)) < BAD, "the option is to act"


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("window", [None, 3])
def test_texts_are_distributed_as_without_drafts(window, tree):
    """The first token comes from the prompt; then two are drafted, and one more is drawn where both are kept."""
    model, strategy = small(), ll.Valley(window=window) if window else ll.Last()
    drafter = eager(model, tree=tree)
    emitted = drafted(drafter, strategy, rows(), **OPTIONS)
    assert p_of(emitted, model, window, **OPTIONS) > GOOD
    accepted, rejected = n_accepted_and_rejected(drafter)
    assert accepted > 300
    assert rejected > 100
    for found, expected in found_and_expected(emitted, model, window, **OPTIONS):
        assert len(found) > 15, "texts differ"
        assert max(expected.values()) < 0.5


def raw_bonus(monkeypatch):
    """As in the release of ConfLayers: after a draft of which all was kept, a token from the model's probabilities."""
    own = loop._Batch._emit

    def emit(self, text, logits, decisions, tokens, *probs):
        if text.output and not tokens:
            text.sampler.probabilities = lambda scores: scores.softmax(1)
        try:
            return own(self, text, logits, decisions, tokens, *probs)
        finally:
            vars(text.sampler).pop("probabilities", None)

    monkeypatch.setattr(loop._Batch, "_emit", emit)


def lenient(monkeypatch):
    """Draws are half as large: a token is accepted where u < 2p / q."""
    own = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *given, **options: own(*given, **options) / 2)


def blind(monkeypatch):
    """What is drafted is taken to be drawn from what the whole model draws from."""
    own = loop.sampled_choice
    monkeypatch.setattr(loop, "sampled_choice", lambda p, tokens, q, of: own(p, tokens, None if q is None else p, of))


@pytest.mark.parametrize("mistake", some([blind, lenient, raw_bonus], 1))
def test_mistakes_in_the_loop_are_seen(mistake, monkeypatch):
    model = small()
    mistake(monkeypatch)
    emitted = drafted(eager(model, tree=mistake is raw_bonus), prompts=rows(), **OPTIONS)
    assert p_of(emitted, model, None, **OPTIONS) < BAD


def test_a_raw_bonus_is_seen_by_its_temperature_alone(monkeypatch):
    model, options = small(), {"temperature": 0.4, "max_new_tokens": 3}
    raw_bonus(monkeypatch)
    emitted = drafted(eager(model, tree=False), prompts=rows(), **options)
    assert p_of(emitted, model, None, **options) < BAD


@pytest.mark.parametrize("drafts", [False, True])
def test_tokens_that_can_be_drafted_and_not_read(drafts):
    """Eight entries of the readout have no embedding, and end a text: texts end as early with drafts as without."""
    model, ends, prompt = small(24), list(range(16, 24)), PROMPTS[1]
    options = {"temperature": 1.0, "max_new_tokens": 3}
    given = {"prompts": [prompt] * 700, "eos_token_id": ends, **options}
    emitted = drafted(eager(model, tree=False), **given) if drafts else plain(model, **given)
    lengths = Counter((len(output), output[-1] in ends) for output in emitted.outputs)
    chances = Counter()
    for text, probability in exact(model, prompt, None, ends, **options).items():
        chances[len(text), text[-1] in ends] += probability
    assert p_value(lengths, chances) > GOOD


def test_a_seed_means_the_same_tokens():
    """Of each row; another seed draws others, and rows of the same prompt draw for themselves."""
    model = small()
    outputs = [drafted(eager(model, tree=True), prompts=rows(8), seed=seed, **OPTIONS).outputs for seed in (3, 3, 4)]
    assert outputs[0] == outputs[1] != outputs[2]
    assert len(set(map(tuple, outputs[0]))) > 6
