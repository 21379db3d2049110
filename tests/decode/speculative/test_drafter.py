"""A drafter's tables against drafts made by hand, what it keeps from prompt to prompt, and when it gives up."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

import layerlens as ll
from layerlens.decode.speculative.acceptance import width
from layerlens.decode.speculative.drafter import Seconds
from layerlens.decode.speculative.fixed import EveryOther, FixedSkip
from layerlens.decode.speculative.policy import Round
from layerlens.errors import ModelError, Notice, OptionError
from layerlens.models.backend import Connection
from tests.conftest import tiny
from tests.decode.speculative.drafts import PROMPTS, Eager, assert_same, damped, drafted, plain
from tests.refusals import refused

COUNTS = ["drafted", "accepted", "siblings", "emitted"]
ALWAYS = {"threshold": 0.0, "patience": None}


def skip(*blocks, **options):
    return FixedSkip(skipped=blocks, **(ALWAYS | options))


def widths(probability):
    """How many tokens a tree has at a place, greedily, by section 6 of the reference."""
    return 3 if probability > 0.95 else 5 if probability > 0.8 else 8 if probability > 0.5 else 10


@torch.no_grad()
def by_hand(model, prompt, skipped, n_tokens, length, threshold=0.0, tree=False):
    """Drafted, accepted, siblings and emitted of each round, from whole passes without a cache. Blocks hand on what
    they were given at the last places, whose tokens are drafted for; the text before is that of the whole model."""

    def logits_of(ids, n_drafting=0):
        def hand_on(_, args, output):
            output = output.clone()
            output[:, len(ids) - n_drafting :] = args[0][:, len(ids) - n_drafting :]
            return output

        handles = [model.blocks[number].register_forward_hook(hand_on) for number in skipped]
        try:
            return model.hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        finally:
            for handle in handles:
                handle.remove()

    text = list(prompt)
    for _ in range(n_tokens):
        text.append(int(logits_of(text).argmax()))
    found, done = [], len(prompt) + 1
    while done < len(text):
        places, spine = [], text[:done]
        while len(places) < min(length, len(text) - done - 1):
            logits = logits_of(spine, len(places) + 1)
            sure = float(logits.softmax(0).max())
            places.append(logits.topk(widths(sure) if tree else 1).indices.tolist())
            spine.append(places[-1][0])
            if sure < threshold:
                break
        accepted = siblings = 0
        for place in places:
            token = text[done + accepted]
            if token not in place:
                break
            accepted += 1
            if token != place[0]:
                siblings += 1
                break
        found.append([len(places), accepted, siblings, accepted + 1])
        done += accepted + 1
    return found


def test_widths_of_a_tree():
    """Those of section 6 of the reference; at a bound the wider one."""
    assert [width(p, samples=False) for p in (1.0, 0.96, 0.95, 0.81, 0.8, 0.51, 0.5, 0.1)] == [3, 3, 5, 5, 8, 8, 10, 10]
    assert [width(p, samples=True) for p in (1.0, 0.96, 0.95, 0.81, 0.8, 0.51, 0.5, 0.1)] == [1, 1, 3, 3, 5, 5, 10, 10]


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize(("length", "threshold"), [(3, 0.0), (9, 0.0), (9, 0.05)])
def test_rounds_are_those_made_by_hand(length, threshold, tree):
    """Of each prompt alone."""
    model, least = damped("llama", 0.75), set()
    for prompt in PROMPTS[:2]:
        drafter = Eager(model, skip(1, 2, length=length, threshold=threshold, tree=tree))
        drafted(drafter, prompts=[prompt], max_new_tokens=14)
        expected = by_hand(model, prompt, [1, 2], 14, length, threshold, tree)
        assert drafter.rounds[COUNTS].to_numpy().tolist() == expected
        least |= {(accepted, siblings) for _, accepted, siblings, _ in expected}
    assert len(least) > (4 if tree else 2), "rounds differ"
    assert any(siblings for _, siblings in least) == tree


@pytest.mark.parametrize("tree", [False, True])
def test_rounds_of_a_batch_are_means_over_its_texts(tree):
    """All emitted tokens but the first of each text, which comes from its prompt."""
    model = damped("llama")
    drafter = ll.Drafter(model, skip(1, 2, length=3, tree=tree))
    free = plain(model, max_new_tokens=30).outputs
    ends = next(one for one in free[0][9:] if one not in free[1] + free[2])
    emitted = drafted(drafter, max_new_tokens=30, eos_token_id=ends)
    table = drafter.rounds
    sums = table[COUNTS].mul(table["n_rows"], axis=0)
    assert sums["emitted"].sum() == pytest.approx(sum(map(len, emitted.outputs)) - len(PROMPTS))
    assert np.allclose(sums, sums.round())
    assert (table["n_rows"].diff().dropna() <= 0).all()
    assert table["n_rows"].iloc[0] == 3
    assert table["n_rows"].nunique() > 1
    assert (table["siblings"] <= table["accepted"]).all()
    assert (table["accepted"] <= table["drafted"]).all()
    assert (table["siblings"] > 0).any() == tree
    is_plain = table["set"] == -1
    assert (is_plain == (table["drafted"] == 0)).all()
    assert (table["emitted"][is_plain] == 1).all()
    assert (table["emitted"] <= table["accepted"] + 1 + 1e-9).all()
    for _, of_size in table.groupby("n_rows"):
        assert is_plain[of_size.index[:4]].all(), "to compare with"
        assert not is_plain[of_size.index[4:-1]].any(), "but the last, where one token is left"
        assert of_size["plain_seconds"].isna().tolist() == [True] + [False] * (len(of_size) - 1)
    assert table["is_over"].all()
    assert (table["verify_seconds"] > 0).all()
    assert (table["draft_seconds"] > 0).all()


def test_a_set_has_the_sums_of_its_rounds():
    model = damped("llama")
    drafter = Eager(model, ll.Swift(skip_ratio=0.5, context_window=3, good_score=1.0, length=3, **ALWAYS))
    drafted(drafter, max_new_tokens=40)
    rounds, sets = drafter.rounds, drafter.sets
    assert len(sets) > 1, "better sets were found"
    assert sets.index.tolist() == list(range(len(sets)))
    assert rounds["set"][rounds["set"] >= 0].is_monotonic_increasing
    assert sets["skipped"].iloc[-1] == str(drafter.skips)
    assert sets["share"].tolist() == [2 / 8] * len(sets), "half of the four parts of two of four blocks"
    assert sets["lambda"].isna().all()
    for number, one in sets.iterrows():
        mine = rounds[rounds["set"] == number]
        assert one["rounds"] == len(mine)
        for column in COUNTS:
            assert one[column] == pytest.approx(mine[column].sum())
        assert one["acceptance"] == pytest.approx(mine["accepted"].sum() / mine["drafted"].sum())
        seconds = (mine["draft_seconds"] + mine["verify_seconds"]).sum()
        assert one["speed_up"] == pytest.approx((mine["emitted"] * mine["plain_seconds"]).sum() / seconds)


def test_what_a_search_has_found_serves_later_prompts():
    """With one drafter; a policy begins anew with each call."""
    model, texts = damped("llama"), ["abc", "What is it?"]
    policy = ll.Swift(skip_ratio=0.5, context_window=3, good_score=1.0, length=3, max_without_gain=30, **ALWAYS)
    drafter = ll.Drafter(model, policy)
    before = 0
    for text in texts:
        found = ll.generate(model, text, draft=drafter, max_new_tokens=16)
        assert found.token_ids == ll.generate(model, text, max_new_tokens=16).token_ids
        assert drafter.search.n_proposals > before
        before, n_rounds = drafter.search.n_proposals, len(drafter.rounds)
    kept = drafter.skips
    assert kept
    ll.generate(model, texts[0], draft=drafter, max_new_tokens=16)
    later = drafter.rounds[n_rounds:]
    assert later["set"].iloc[0] >= 0, "drafted from the first round on"
    anew = ll.Drafter(model, policy)
    ll.generate(model, texts[0], draft=anew, max_new_tokens=16)
    assert (anew.rounds["set"].iloc[:3] == -1).all(), "a search that has not begun leaves nothing out"


@pytest.fixture(scope="module")
def wrong():
    """A model without two of whose blocks no token is right."""
    model = damped("llama", 2.0)
    drafter = Eager(model, skip(1, 2, length=20))
    drafted(drafter, max_new_tokens=30)
    assert drafter.rounds["accepted"].sum() == 0
    return model


def test_drafts_that_do_not_pay_are_given_up(wrong):
    """After one round of twenty wrong drafts. Tokens stay what they are, and later prompts are decoded plainly."""
    drafter = ll.Drafter(wrong, skip(1, 2, length=20, patience=1))
    expected = plain(wrong, max_new_tokens=30)
    with pytest.warns(Notice, match=f"{wrong.source}.* 1 rounds were 0") as told:
        assert_same(drafted(drafter, max_new_tokens=30), expected)
    assert len(told) == 1
    assert not drafter.pays
    rounds = drafter.rounds
    assert (rounds["set"] >= 0).tolist() == [False] * 4 + [True] + [False] * (29 - 4 - 1)
    again = ll.generate(wrong, "abc", draft=drafter, max_new_tokens=20)
    assert again.token_ids == ll.generate(wrong, "abc", max_new_tokens=20).token_ids
    assert len(drafter.rounds) == len(rounds), "not one round more"


def told(drafter, drafted_tokens, seconds, emitted=1):
    """Tell a drafter of one round of one text."""
    skips = drafter.skips if drafted_tokens else ll.SkipSet()
    last = Round(9, [drafted_tokens], [emitted - 1], [0], [emitted], [list(range(emitted))], skips)
    drafter.add(last, seconds, was_over=False)


@pytest.mark.parametrize(
    ("patience", "draft", "emitted", "n_rounds"),
    [
        (3, 0.2, 1, 3),  # each round loses a fifth of a plain pass
        (3, 5.0, 1, 1),  # the first one loses more than three
        (12, 5.0, 1, 3),  # three lose fifteen
        (12, 5.0, 3, 5),  # as many tokens as three plain passes give: each round loses three
        (12, 5.0, 6, None),  # nothing is lost
        (None, 5.0, 1, None),
    ],
)
def test_drafting_ends_after_so_many_rounds_or_after_the_time_of_so_many_passes(
    wrong, patience, draft, emitted, n_rounds
):
    """A plain pass takes a second, and so does the pass that checks a draft."""
    drafter = ll.Drafter(wrong, skip(1, 2, length=20, patience=patience))
    for _ in range(4):
        told(drafter, 0, Seconds(0.0, 1.0, 0.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        for number in range(1, 40):
            told(drafter, 7, Seconds(draft, 1.0, 100.0), emitted)
            assert drafter.pays == (n_rounds is None or number < n_rounds)
            if not drafter.pays:
                break


@pytest.mark.parametrize(("n_proposals", "patience", "gives_up"), [(1, 5, True), (0, 5, False), (1, None, False)])
def test_a_search_in_vain_ends(wrong, n_proposals, patience, gives_up):
    """Once it has proposed something, and then found nothing to leave out in so many rounds."""
    drafter = ll.Drafter(wrong, ll.Swift(patience=patience))
    drafter.search.n_proposals = n_proposals
    assert not drafter.skips
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for number in range(1, 12):
            told(drafter, 0, Seconds(0.0, 1.0, 1.0))
            assert drafter.pays == (not gives_up or number < 5)
    assert [one.category for one in said] == [Notice] * gives_up


def test_what_is_no_model_or_no_search_is_refused(wrong):
    class Wrong(ll.FixedSkip):
        def search(self, model):
            return ll.SkipSet.of_blocks([1])

    with refused(OptionError, "model", "smollm2", advice="ll.load"):
        ll.Drafter("smollm2", ll.Swift())
    with refused(OptionError, "draft", "Wrong", problem="SkipSet", advice="ll.Search"):
        ll.Drafter(wrong, Wrong([1]))


def test_drafts_are_not_given_up_without_patience(wrong):
    drafter = ll.Drafter(wrong, skip(1, 2, length=20, patience=None))
    drafted(drafter, max_new_tokens=30)
    assert drafter.pays
    assert (drafter.rounds["set"] >= 0).sum() == 29 - 4 - 1, "all but the first four and the last, of one token"


def test_a_search_that_is_given_up_looks_no_more(wrong):
    """Passes go on without its hooks."""
    drafter = ll.Drafter(
        wrong, ll.Swift(skip_ratio=1.0, context_window=2, good_score=1.0, length=20, threshold=0.0, patience=2)
    )
    with pytest.warns(Notice, match="2 rounds"):
        assert_same(drafted(drafter, max_new_tokens=30), plain(wrong, max_new_tokens=30))
    n = drafter.search.n_proposals
    assert 0 < n < 12


def test_a_search_that_ends_with_nothing_says_so(wrong):
    """No set of ConfLayers was accepted at all, so that the best one is none."""
    policy = ll.ConfLayers(context_window=2, search_interval=2, max_proposals=3, length=3, **ALWAYS)
    drafter = ll.Drafter(wrong, policy)
    with pytest.warns(Notice, match=f"{wrong.source}.* none of 3 sets") as told:
        assert_same(drafted(drafter, max_new_tokens=40), plain(wrong, max_new_tokens=40))
    assert len(told) == 1
    assert not drafter.pays
    assert not drafter.skips


def one_round(n_rows, emitted, n_drafted):
    each = lambda n: [n] * n_rows  # noqa: E731
    read = [list(range(emitted))] * n_rows
    skips = ll.SkipSet.of_blocks([1])
    return Round(
        n_emitted=50,
        drafted=each(n_drafted),
        accepted=each(emitted - 1),
        siblings=each(0),
        emitted=each(emitted),
        read=read,
        skips=skips,
    )


@pytest.mark.parametrize(("seconds", "pays"), [(2.8, True), (3.2, False)])
def test_speed_is_the_time_of_plain_rounds_for_the_same_tokens(seconds, pays):
    """Three tokens a round against plain rounds of a second, which are the middle of what was measured of so many
    rows; the search counts for nothing."""
    drafter = ll.Drafter(damped("llama"), skip(1, patience=5))
    for plain_seconds in (9.0, 1.0, 1.0, 0.1, 1.0):
        drafter.add(one_round(2, 1, 0), Seconds(0.0, plain_seconds, 50.0), was_over=True)
    drafter.add(one_round(1, 1, 0), Seconds(0.0, 100.0, 50.0), was_over=True)
    for _ in range(4):
        drafter.add(one_round(2, 3, 4), Seconds(0.8, seconds - 0.8, 50.0), was_over=True)
    assert drafter.pays, "patience is not yet over"
    if pays:
        drafter.add(one_round(2, 3, 4), Seconds(0.8, seconds - 0.8, 50.0), was_over=True)
    else:
        with pytest.warns(Notice, match="0.94 times"):
            drafter.add(one_round(2, 3, 4), Seconds(0.8, seconds - 0.8, 50.0), was_over=True)
    assert drafter.pays == pays
    assert (drafter.length(2) > 0) == pays
    assert drafter.rounds["plain_seconds"].iloc[-1] == 1.0


def test_a_plain_round_comes_again_from_time_to_time():
    """A longer text takes longer to decode plainly too."""
    drafter = ll.Drafter(damped("llama"), skip(1, length=7, patience=None))
    lengths = []
    for _ in range(80):
        lengths.append(drafter.length(1))
        n = lengths[-1]
        drafter.add(one_round(1, 1, n), Seconds(0.1 if n else 0.0, 1.0, 0.0), was_over=True)
    assert [place for place, n in enumerate(lengths) if n == 0] == [0, 1, 2, 3, 36, 69]
    assert set(lengths) == {0, 7}


def test_what_makes_no_drafts_here_is_refused():
    model = damped("llama")
    drafter = ll.Drafter(model, skip(1))
    other = tiny("llama")
    with refused(OptionError, "draft", model.source, problem="another model", advice=other.source):
        ll.generate(other, "abc", draft=drafter, max_new_tokens=2)
    with refused(OptionError, "draft", "conflayer", advice="conflayers"):
        ll.generate(model, "abc", draft="conflayer", max_new_tokens=2)
    with refused(OptionError, "draft", "fixed", problem="skipped"):
        ll.generate(model, "abc", draft="fixed", max_new_tokens=2)
    for wrong in (3, ll.Last(), EveryOther):
        with refused(OptionError, "draft", wrong):
            ll.generate(model, "abc", draft=wrong, max_new_tokens=2)
    far = replace(model, backend=Connection("far", is_here=False))
    with refused(ModelError, "draft", "far", advice="without drafts"):
        ll.Drafter(far, skip(1))
