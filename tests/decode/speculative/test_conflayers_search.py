"""When ConfLayers proposes a set, which one, and when its search ends; against the rules in plain Python."""

import math
import random
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

import layerlens as ll
from layerlens.decode.speculative.conflayers import ConfidenceSearch
from layerlens.decode.speculative.skipset import SkipSet
from layerlens.models import tiny_model, tiny_tokenizer
from tests.decode.speculative.passes import deep, one_round
from tests.decode.speculative.test_confidence import plain_below, plain_neighbours, plain_windows
from tests.refusals import refused

WINDOW = 4


@pytest.fixture(scope="module")
def model():
    """Twelve blocks: ten candidates."""
    return ll.load(tiny_model("llama", num_hidden_layers=12), tokenizer=tiny_tokenizer())


class Play:
    """A search that is told of rounds of its own, on tokens that are drawn."""

    def __init__(self, model, seed=0, **options):
        self.model = model
        self.search = ll.ConfLayers(**{"context_window": WINDOW} | options).search(model)
        self.draw = random.Random(seed)
        self.n_emitted = 1
        self.counts = []

    def begin(self):
        self.search.begin()
        self.n_emitted = 1

    @torch.no_grad()
    def round(self, accepted=0, drafted=5, n_emitted=None, n_rows=1):
        """One round; the number of proposals after it."""
        search = self.search
        if not search.skips:
            drafted = accepted = 0
        n_read = accepted + 1
        ids = torch.tensor([[self.draw.randrange(3, 259) for _ in range(drafted + 1)] for _ in range(n_rows)])
        with search.watching(drafted + 1):
            self.model.hf(input_ids=ids, use_cache=False)
        self.n_emitted = self.n_emitted + n_read if n_emitted is None else n_emitted
        last = one_round(
            [range(n_read)] * n_rows,
            search.skips,
            n_emitted=self.n_emitted,
            drafted=[drafted] * n_rows,
            accepted=[accepted] * n_rows,
        )
        assert not search.is_over
        search.after(last, None)
        self.counts.append(search.n_proposals)
        return search.n_proposals


def until_proposed(model, **options):
    """A search after its first proposal, which left something out."""
    play = Play(model, **options)
    while not play.search.n_proposals:
        play.round()
    assert play.search.skips
    return play


@pytest.mark.parametrize("window", [1, 4, 9])
def test_nothing_is_proposed_before_one_more_token_than_the_window(model, window):
    play = Play(model, context_window=window)
    for n_emitted in range(2, window + 1):
        assert play.round(n_emitted=n_emitted) == 0
        assert (play.search.skips, play.search.picture, play.search.lam) == (SkipSet(), None, 0.0)
    assert play.round(n_emitted=window + 1) == 1
    assert play.search.skips
    assert not play.search.is_over


def test_a_set_of_the_wanted_size_stays_for_an_interval(model):
    """While one to four tokens are accepted a round, nothing else is proposed."""
    play = until_proposed(model, skip_ratio=0.1, search_interval=6)
    assert len(play.search.skips.blocks) >= 2
    skips = play.search.skips
    for _ in range(5):
        assert play.round(accepted=2) == 1
        assert play.search.skips is skips
    assert play.round(accepted=2) == 2
    assert [play.round(accepted=2) for _ in range(12)] == [2] * 5 + [3] * 6 + [4]


def test_every_prompt_has_a_proposal_once_it_is_long_enough(model):
    """And keeps the set of the last one until then."""
    play = until_proposed(model, skip_ratio=0.1, search_interval=50)
    for number in range(1, 4):
        skips = play.search.skips
        assert [play.round(accepted=1) for _ in range(4)] == [number] * 4
        play.begin()
        assert play.round(accepted=1, n_emitted=3) == number
        assert play.round(accepted=0, n_emitted=WINDOW) == number
        assert play.search.skips is skips
        assert play.round(accepted=0, n_emitted=WINDOW + 1) == number + 1
        assert play.search.skips is not skips


@pytest.mark.parametrize(("skip_ratio", "is_each"), [(0.0, False), (0.9, True), (1.0, True)])
def test_a_set_that_is_too_small_is_replaced_after_every_round(model, skip_ratio, is_each):
    """Too small is fewer than int(10 candidates x skip_ratio) + 1 blocks, however well its drafts do."""
    play = until_proposed(model, skip_ratio=skip_ratio, search_interval=40)
    assert len(play.search.skips.blocks) < 10
    counts = [play.round(accepted=3) for _ in range(6)]
    assert counts == ([2, 3, 4, 5, 6, 7] if is_each else [1] * 6)


def test_the_least_size_is_counted_among_the_candidates(model):
    """A proposal of n blocks is kept where int(10 x skip_ratio) + 1 is n, and replaced where it is n + 1."""
    n = len(until_proposed(model).search.skips.blocks)
    for skip_ratio, is_kept in ((n / 10 - 0.05, True), (n / 10 + 0.01, False)):
        play = until_proposed(model, skip_ratio=skip_ratio)
        assert len(play.search.skips.blocks) == n, "the first proposal does not hang on it"
        assert (play.round(accepted=2) == 1) == is_kept


@pytest.mark.parametrize("interval", [2, 7, 8])
def test_bad_drafts_are_ended_after_half_an_interval(model, interval):
    """Bad is less than one accepted token a round, on average."""
    half = interval // 2
    for accepted, is_bad in (([0] * 8, True), ([0, 1, 1, 1, 1, 1, 1, 1], True), ([1] * 8, False), ([2, 0] * 4, False)):
        play = until_proposed(model, skip_ratio=0.1, search_interval=interval)
        counts = [play.round(accepted=n) for n in accepted[:half]]
        assert counts == [1] * (half - 1) + [2 if is_bad else 1]


def test_bad_drafts_are_ended_as_soon_as_they_are_bad_in_the_second_half(model):
    play = until_proposed(model, skip_ratio=0.1, search_interval=8)
    assert [play.round(accepted=n) for n in (3, 1, 0, 0, 0)] == [1, 1, 1, 1, 2], "the mean is 4 / 5 after the fifth"


def test_rounds_before_a_proposal_say_nothing_of_it(model):
    """Sums begin anew with every set."""
    play = until_proposed(model, skip_ratio=0.1, search_interval=4)
    assert [play.round(accepted=0) for _ in range(2)] == [1, 2]
    assert [play.round(accepted=1) for _ in range(4)] == [2, 2, 2, 3]
    assert [play.round(accepted=n) for n in (2, 0, 0, 2)] == [3, 3, 4, 4], "2 / 3 after the third"


@pytest.mark.parametrize(
    ("accepted", "drafted", "ends"),
    [
        ([5, 5, 5], [5, 5, 5], True),
        ([4, 4, 4], [4, 4, 4], False),  # not above 4
        ([4, 4, 5], [4, 4, 5], True),
        ([19, 19, 19], [20, 20, 20], False),  # not above 0.95
        ([20, 19, 19], [20, 20, 20], True),
        ([20, 20, 2], [20, 20, 20], False),
        ([1, 20, 20], [1, 20, 20], True),  # means over all rounds of the set
        ([10, 1, 1], [10, 1, 1], False),
    ],
)
def test_the_search_ends_with_a_set_whose_drafts_are_nearly_all_accepted(model, accepted, drafted, ends):
    """Once half an interval was seen; the set stays. A proposal that is due in the same round is not made."""
    play = until_proposed(model, skip_ratio=0.1, search_interval=6)
    skips, lam = play.search.skips, play.search.lam
    for place, (n_accepted, n_drafted) in enumerate(zip(accepted, drafted, strict=True)):
        assert not play.search.is_over
        play.round(n_accepted, n_drafted)
        assert place == 2 or not play.search.is_over
    assert play.search.is_over == ends
    assert (play.search.skips is skips, play.search.n_proposals, play.search.lam) == (True, 1, lam)


def test_the_search_can_end_when_a_proposal_is_due(model):
    play = until_proposed(model, skip_ratio=0.1, search_interval=6)
    skips = play.search.skips
    for _ in range(2):
        play.round(5)
    play.begin()
    play.round(5, n_emitted=WINDOW + 2)
    assert (play.search.is_over, play.search.n_proposals, play.search.skips) == (True, 1, skips)


@pytest.mark.parametrize("skip_ratio", [0.0, 0.3, 0.7])
def test_lambda_moves_by_a_twentieth_towards_the_wanted_share(model, skip_ratio):
    """Up where more than a quarter too much was left out, down where too little was, for the next proposal."""
    play = Play(model, skip_ratio=skip_ratio, search_interval=2, lam=0.1, max_proposals=1000)
    lam, moves = 0.1, set()
    for _ in range(60):
        before = play.search.n_proposals
        if play.round(accepted=0, drafted=3) == before:
            continue
        share = len(play.search.skips.blocks) / 10
        assert play.search.skips.found["lambda"] == pytest.approx(lam), "it was proposed with the one before"
        move = 0.05 if share > skip_ratio + 0.25 else -0.05 if share < skip_ratio else 0.0
        lam += move
        moves.add(move)
        assert play.search.lam == pytest.approx(lam)
    assert play.search.n_proposals > 20
    assert moves == {0.0: {0.05, 0.0}, 0.3: {0.05, 0.0, -0.05}, 0.7: {0.0, -0.05}}[skip_ratio]


def ended(model, accepted, n_proposals, **options):
    """The sets that were proposed, and the search after the last one; `accepted` is of each round of each set."""
    play = until_proposed(model, skip_ratio=0.0, search_interval=2, max_proposals=n_proposals, **options)
    sets = [play.search.skips]
    for of_set in accepted:
        assert len(sets) == play.search.n_proposals
        while play.search.n_proposals == len(sets):
            play.round(of_set)
        sets.append(play.search.skips)
    return sets, play.search


def test_at_the_end_the_best_set_is_used(model):
    """The one with the most accepted tokens a round, of those with at least one."""
    sets, search = ended(model, [0, 2, 4, 1, 3], 6)
    assert search.is_over
    assert search.n_proposals == 6
    assert search.skips is sets[2]
    assert len(set(sets[:-1])) > 1
    assert ended(model, [0, 0, 1, 0, 0], 6)[1].skips == ended(model, [0, 0, 1, 0, 0], 6)[0][2]


def test_of_sets_that_are_equally_good_the_later_is_used(model):
    sets, search = ended(model, [2, 0, 2, 1], 5)
    assert search.skips is sets[2]


def test_at_the_end_nothing_is_left_out_where_no_set_was_good(model):
    """Then nothing more is drafted."""
    sets, search = ended(model, [0, 0, 0], 4)
    assert all(sets[:-1])
    assert (search.is_over, search.skips) == (True, SkipSet())


def test_a_single_proposal_is_the_last_and_was_never_tried(model):
    play = Play(model, max_proposals=1)
    play.round(n_emitted=WINDOW + 1)
    assert (play.search.is_over, play.search.skips, play.search.n_proposals) == (True, SkipSet(), 1)


def test_rounds_without_a_set_are_not_counted(model):
    """A proposal that leaves nothing out is replaced after one round, and is never the best."""
    play = Play(model, readout="vocabulary", lam=10.0, skip_ratio=0.0, search_interval=2, max_proposals=4)
    play.round(n_emitted=WINDOW + 1)
    assert (play.search.n_proposals, play.search.skips) == (1, SkipSet())
    assert [play.round() for _ in range(3)] == [2, 3, 4]
    assert (play.search.is_over, play.search.skips) == (True, SkipSet())


def test_rounds_in_which_nothing_was_drafted_say_nothing_of_a_set(model):
    """Such as those of plain decoding, by which a drafter learns whether drafts pay."""
    play = until_proposed(model, skip_ratio=0.1, search_interval=8)
    assert [play.round(accepted=0, drafted=0) for _ in range(4)] == [1] * 4, "a mean of nothing is not below 1"
    assert [play.round(accepted=n, drafted=3) for n in (1, 2, 0, 1, 0)] == [1, 1, 1, 1, 2], (
        "4 / 5 after the fifth draft"
    )


# the names of attention and MLP within a block, and final norm and unembedding within a model
NAMES = {
    "llama": ("self_attn", "mlp", lambda hf: hf.model.norm),
    "gemma2": ("self_attn", "mlp", lambda hf: hf.model.norm),
    "gpt2": ("attn", "mlp", lambda hf: hf.transformer.ln_f),
}


def plain_entropy(logits):
    log_probs = torch.log_softmax(logits.double(), -1).flatten(0, -2).tolist()
    return [-math.fsum(math.exp(one) * one for one in row) for row in log_probs]


class Confidences:
    """Of each block and each token of a pass, from hooks of its own: [block][token]."""

    def __init__(self, model, readout):
        self.model, self.readout = model, readout

    @torch.no_grad()
    def of(self, ids):
        attention, mlp, norm = NAMES[self.model.family]
        found, handles = {}, []
        for number, block in enumerate(self.model.blocks):
            for name in (attention, mlp):
                handles.append(
                    getattr(block, name).register_forward_hook(
                        lambda _, __, out, key=(number, name): found.__setitem__(
                            key, out[0] if isinstance(out, tuple) else out
                        )
                    )
                )
        hf = self.model.hf
        hf(input_ids=ids, use_cache=False)
        for handle in handles:
            handle.remove()
        sums = []
        for number in range(self.model.n_layers):
            parts = [found[number, name] for name in (attention, mlp)]
            if self.readout == "vocabulary":
                parts = [hf.lm_head(norm(hf)(part)) for part in parts]
                cap = getattr(hf.config, "final_logit_softcapping", None)
                parts = [part if cap is None else torch.tanh(part / cap) * cap for part in parts]
            width = parts[0].shape[-1]
            entropies = [plain_entropy(part) for part in parts]
            sums.append([2 - (a + b) / math.log(width) for a, b in zip(*entropies, strict=True)])
        rows, tokens = ids.shape
        return [
            [[of_block[row * tokens + token] for token in range(tokens)] for row in range(rows)] for of_block in sums
        ]


@torch.no_grad()
@pytest.mark.parametrize("readout", ["hidden", "vocabulary"])
@pytest.mark.parametrize("family", NAMES)
def test_a_proposal_is_made_from_the_last_verified_tokens(family, readout):
    """Of two texts that keep different tokens of each pass: blocks whose mean confidence is below their neighbours'."""
    model, lam = deep(family), -0.3
    able = sorted(set(range(1, 7)) - ({1} if family == "gemma2" else set()))
    search = ll.ConfLayers(readout=readout, context_window=8, lam=lam, search_interval=2).search(model)
    draw, confidences = torch.Generator().manual_seed(3), []
    read = [[[0, 1, 2], [0]], [[0], [0, 3, 5]], [[0, 2], [0, 1]]]
    for number, places in enumerate(read):
        ids = torch.randint(3, 259, (2, 6), generator=draw)
        with search.watching(6):
            model.hf(input_ids=ids, use_cache=False)
        of_blocks = Confidences(model, readout).of(ids)
        confidences.append([[of_blocks[b][row][t] for row in (0, 1) for t in places[row]] for b in able])
        search.after(one_round(places, search.skips, n_emitted=9 if number == 2 else 8), None)
    # four tokens each of the last two rounds; those of the first are too long ago
    expected = [sum(second + third) / 8 for second, third in zip(*confidences[1:], strict=True)]
    assert search.n_proposals == 1
    picture = search.picture
    assert picture["block"].tolist() == able
    np.testing.assert_allclose(picture["confidence"], expected, atol=2e-5)
    values = picture["confidence"].tolist()
    widths = plain_windows(values)
    assert picture["window"].tolist() == widths
    for place, near in enumerate(plain_neighbours(values, widths, place) for place in range(len(able))):
        assert picture["local_mean"][place] == pytest.approx(sum(near) / len(near))
    below = plain_below(values, lam)
    assert picture["is_skipped"].tolist() == [place in below for place in range(len(able))]
    assert search.skips == SkipSet.of_blocks(able[place] for place in below)
    assert 0 < len(below) < len(able)
    assert search.skips.found["readout"] == readout


@torch.no_grad()
@pytest.mark.parametrize("window", [1, 4, 5, 7])
def test_a_window_can_begin_within_a_round(window):
    """The tokens of a text are counted back from its last one, through rounds of three."""
    model, found = deep("llama"), []
    search = ll.ConfLayers(context_window=window, skip_ratio=1.0).search(model)
    draw = torch.Generator().manual_seed(5)
    for number in range(4):
        ids = torch.randint(3, 259, (1, 4), generator=draw)
        with search.watching(4):
            model.hf(input_ids=ids, use_cache=False)
        found.append([of_block[0][:3] for of_block in Confidences(model, "hidden").of(ids)[1:7]])
        search.after(one_round([[0, 1, 2]], search.skips, n_emitted=3 * number + 4), None)
        tokens = [[one for of_round in rounds for one in of_round][-window:] for rounds in zip(*found, strict=True)]
        if len(tokens[0]) < window:
            assert search.picture is None
            continue
        expected = [sum(of_block) / window for of_block in tokens]
        np.testing.assert_allclose(search.picture["confidence"], expected, atol=2e-5)


def test_the_two_readouts_differ():
    model, found = deep("llama"), {}
    for readout in ("hidden", "vocabulary"):
        play = until_proposed(model, readout=readout)
        found[readout] = play.search.picture["confidence"]
    assert (found["hidden"] - found["vocabulary"]).abs().min() > 1e-3


class Rules:
    """The events of the search in plain Python: what follows from a round, without what is proposed."""

    def __init__(self, policy, n_candidates):
        self.policy, self.n_candidates = policy, n_candidates
        self.rounds, self.tried = [], []  # accepted and drafted of each round of the set, and each set's mean
        self.has_proposed = False

    def after(self, last):
        """ "nothing", "propose", "keep" or "end"."""
        policy, size = self.policy, len(last.skips.blocks)
        if sum(last.drafted):
            self.rounds.append((sum(last.accepted) / len(last.accepted), sum(last.drafted) / len(last.drafted)))
        if last.n_emitted < policy.context_window + 1:
            return "nothing"
        n = len(self.rounds)
        accepted = sum(one for one, _ in self.rounds)
        drafted = sum(one for _, one in self.rounds)
        mean = accepted / n if n else 0
        if n >= policy.search_interval // 2 and mean > 4 and accepted > 0.95 * drafted:
            return "keep"
        is_due = not self.has_proposed or size < int(self.n_candidates * policy.skip_ratio) + 1
        if not (is_due or n >= policy.search_interval or (n >= policy.search_interval // 2 and mean < 1)):
            return "nothing"
        self.tried.append((mean if n else -1, last.skips))
        self.rounds, self.has_proposed = [], True
        return "end" if len(self.tried) == policy.max_proposals else "propose"

    @property
    def best(self):
        """The last of the sets with the most accepted tokens; nothing where that is less than one."""
        best = max(mean for mean, _ in self.tried)
        return [skips for mean, skips in self.tried if mean == best][-1] if best >= 1 else SkipSet()


class Watched(ConfidenceSearch):
    """Keeps what it was told, and what it did."""

    def __init__(self, policy, model):
        super().__init__(policy, model)
        self.events = []

    def begin(self):
        super().begin()
        self.events.append("begin")

    def after(self, last, lab):
        before = self.skips
        super().after(last, lab)
        self.events.append((last, before, self.skips, self.n_proposals, self.is_over))


@dataclass(frozen=True)
class WatchedConfLayers(ll.ConfLayers):
    """The policy, with searches that can be looked at afterwards."""

    searches: list = field(default_factory=list)

    def search(self, model):
        self.searches.append(Watched(self, model))
        return self.searches[-1]


@pytest.mark.parametrize(
    ("options", "damped"),
    [
        ({"search_interval": 3, "max_proposals": 9}, 0.1),
        ({"search_interval": 4, "skip_ratio": 0.2, "max_proposals": 6}, 0.1),
        ({"search_interval": 6, "skip_ratio": 0.0, "length": 6, "threshold": 0.0}, 0.02),
        ({"search_interval": 4, "skip_ratio": 0.9, "max_proposals": 12}, 0.3),
        ({"search_interval": 2, "skip_ratio": 0.1, "max_proposals": 5}, 1.0),
    ],
)
@pytest.mark.filterwarnings("ignore:drafts do not pay")  # where no set was good
def test_every_round_of_real_decoding_follows_the_rules(options, damped):
    """Over several prompts, one after the other and in batches."""
    model = deep("llama", damped=damped)
    policy = WatchedConfLayers(context_window=6, patience=None, **options)
    drafter = ll.Drafter(model, policy)
    prompts = ["The first one", "And", "another text that is longer", "so it ends"]
    few = {"max_new_tokens": 24, "batch_size": 2}
    plain = ll.generate(model, prompts, **few)
    found = [ll.generate(model, prompt, draft=drafter, **few) for prompt in prompts[:2]]
    found += ll.generate(model, prompts[2:], draft=drafter, **few)
    assert [one.token_ids for one in found] == [one.token_ids for one in plain]
    (search,) = policy.searches
    rules, n_proposals, seen = Rules(policy, 6), 0, set()
    for event in search.events:
        if event == "begin":
            rules.has_proposed = False
            continue
        last, before, after, n_after, is_over = event
        assert last.skips is before
        what = rules.after(last)
        seen.add(what)
        n_proposals += what in ("propose", "end")
        assert n_after == n_proposals
        assert is_over == (what in ("end", "keep"))
        if what == "end":
            assert after == rules.best
        elif what != "propose":
            assert after is before
    assert {"nothing", "propose"} <= seen
    assert drafter.pays == (not search.is_over or bool(search.skips))
    assert search.events.count("begin") == 3 or not drafter.pays


def test_the_rules_are_followed_whatever_happens(model):
    """Rounds that are drawn; their searches end in each of the ways there are."""
    ends = set()
    for seed in range(16):
        draw = random.Random(seed)
        policy = ll.ConfLayers(
            context_window=draw.choice([1, 5]),
            search_interval=draw.randint(2, 7),
            skip_ratio=draw.choice([0.0, 0.2, 0.45, 0.8]),
            max_proposals=draw.choice([3, 8, 20]),
            lam=draw.choice([0.0, 1.0]),
        )
        play = Play(model, seed, **{name: getattr(policy, name) for name in vars(policy)})
        rules, n_proposals, usual = Rules(policy, 10), 0, draw.choice([0, 1, 2, 5])
        for _ in range(30):
            if draw.random() < 0.1:
                play.begin()
                rules.has_proposed = False
            skips = play.search.skips
            drafted = draw.randint(1, 6) if usual < 5 else 6
            accepted = min(drafted, max(0, usual + draw.choice([-1, 0, 0, 1])))
            if not skips:
                drafted = accepted = 0
            play.round(accepted, drafted)
            last = one_round([[0]], skips, n_emitted=play.n_emitted, drafted=[drafted], accepted=[accepted])
            what = rules.after(last)
            n_proposals += what in ("propose", "end")
            assert play.search.n_proposals == n_proposals
            assert play.search.is_over == (what in ("end", "keep"))
            if what == "end":
                assert play.search.skips == rules.best
            if play.search.is_over:
                ends.add((what, bool(play.search.skips)))
                break
    assert ends == {("end", True), ("end", False), ("keep", True)}


def test_attention_and_mlp_must_be_told_apart(model):
    """In BLOOM their outputs include the stream."""
    bloom = ll.load(tiny_model("bloom"), tokenizer=tiny_tokenizer())
    with refused(ll.ModelError, given=bloom.source, problem="attention and MLP"):
        ll.ConfLayers().search(bloom)
