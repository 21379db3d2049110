"""Models and tokenizers as few people have them: records and texts are right, or one sentence refuses them."""

import itertools
import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE, WordLevel
from transformers import PreTrainedTokenizerFast

import layerlens as ll
from layerlens.errors import LayerlensError
from layerlens.models import tiny_model, tiny_tokenizer
from tests import reference
from tests.decode.test_contrast import dola, half_written_out, sled
from tests.hard.doors import IS_HARD, cases, knock, refused_or_done, result_or_sentence
from tests.refusals import refused

CLOSE = 1e-4
FLOATS = ("norm_ratio", "io_cosine", "attn_ratio", "mlp_ratio", "entropy", "kl_last_to_layer", "js_from_last")
EVERYTHING = {"kl": True, "js": True, "targets": True, "sublayers": True, "confidence": True}
RAGGED = ["abc", "b", "a longer text than these", "ba"]


def right(model, ids, n_prompt):
    """What the states of a whole float32 pass say of the tokens after the prompt, in float64."""
    blocks, tail = reference.structure(model.hf)
    seen = reference.watch(model.hf, blocks, torch.tensor([ids]))
    readout = reference.own_readout(model.hf, tail)
    places = range(n_prompt - 1, len(ids) - 1)
    return reference.numbers("llama", model.hf, blocks, seen, 0, places, readout)


def walked(entropies, window):
    """The layer where Eq. 7 ends: back from the last layer while the entropy strictly falls; a tie ends it."""
    layer = len(entropies)
    while layer - 1 > len(entropies) - window and entropies[layer - 2] < entropies[layer - 1]:
        layer -= 1
    return layer


def assert_emitted(log_probs, selected, token_ids):
    """Each token is a best one of the layer that it comes from, and the first of equal ones."""
    for place, (layer, token_id) in enumerate(zip(selected, token_ids, strict=True)):
        of_layer = log_probs[place, layer - 1]
        assert of_layer[token_id] >= of_layer.max() - CLOSE, (place, layer, token_id)
        equal = np.flatnonzero(of_layer == of_layer[token_id])
        assert token_id == equal[0], (place, layer, token_id, equal[:5])


def assert_right(model, run, window):
    """Every number of a run that decoded with Valley(window), against `right` and Eq. 7 written out."""
    assert len(run.positions) == run.prompts["n_generated_tokens"].sum()
    n_vocab = model.n_vocab
    for (_, rows), (_, prompt) in zip(
        run.positions.groupby("prompt_id", sort=False), run.prompts.iterrows(), strict=True
    ):
        emitted = rows["next_token_id"].tolist()
        given = model.tokenizer(prompt["prompt"]).input_ids
        assert len(given) == prompt["n_prompt_tokens"]
        expected = right(model, [*given, *emitted], len(given))
        for name in FLOATS:
            if run.has(name):
                np.testing.assert_allclose(
                    run.layers(name)[rows.index], expected[name], atol=CLOSE, rtol=CLOSE, err_msg=name
                )
        entropies = run.layers("entropy")[rows.index]
        assert (entropies >= 0).all()
        assert (entropies <= math.log(n_vocab) * (1 + 1e-7)).all()
        top = run.layers("top_token_id")[rows.index]
        best = expected["log_probs"].max(-1)
        taken = np.take_along_axis(expected["log_probs"], top[..., None], -1)[..., 0]
        assert (taken >= best - CLOSE).all()
        assert rows["valley_layer"].tolist() == [walked(one, window) for one in entropies.tolist()]
        assert rows["selected_layer"].tolist() == rows["valley_layer"].tolist()
        assert_emitted(expected["log_probs"], rows["selected_layer"], emitted)
        if run.has("top_k_probs"):
            width = run.layers("top_k_probs").shape[-1]
            ordered = -np.sort(-np.exp(expected["log_probs"]), -1)[..., :width]
            np.testing.assert_allclose(run.layers("top_k_probs")[rows.index], ordered, atol=CLOSE)


def letters(text="ab", **special):
    """A tokenizer of a few letters and no other token; what is not among them is no token at all."""
    tokenizer = Tokenizer(BPE(vocab={letter: place for place, letter in enumerate(text)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def lacking(*names):
    """The tokenizer of tiny models without some of its special tokens."""
    tokenizer = tiny_tokenizer()
    for name in names:
        setattr(tokenizer, name, None)
    return tokenizer


def many_words(n_words):
    """A tokenizer that knows more tokens than the tiny models have."""
    words = [*tiny_tokenizer().get_vocab(), *(f"word{number}" for number in range(n_words))]
    ordered = sorted(words, key=lambda word: tiny_tokenizer().get_vocab().get(word, 10**9))
    tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(ordered)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<pad>")


TOKENIZERS = {
    "no pad token": lambda: lacking("pad_token"),
    "no end token": lambda: lacking("eos_token"),
    "no begin token": lambda: lacking("bos_token"),
    "none of the three": lambda: lacking("pad_token", "eos_token", "bos_token"),
    "no special token at all": lambda: letters("abcdefghijklmnopqrstuvwxyzĠ"),
    "more tokens than the model": lambda: many_words(1000),
    "the end token pads": lambda: _padded_with_its_end(),
}


def _padded_with_its_end():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


NO_IDS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}


LACKING = list(itertools.product(TOKENIZERS, (NO_IDS, {})))[:: cases(7, 1)]


@pytest.mark.parametrize(("name", "changes"), LACKING, ids=lambda one: one if isinstance(one, str) else len(one))
def test_tokenizers_that_lack_tokens(name, changes, run_of):
    """Ragged texts together, one by one and in one float64 pass give the same."""
    model = ll.load(tiny_model("llama", tie_word_embeddings=False, **changes), tokenizer=TOKENIZERS[name]())
    options = {"max_new_tokens": 3, "strategy": ll.Valley(window=3), **EVERYTHING}
    together = run_of(model, RAGGED, batch_size=4, **options)
    assert_right(model, together, 3)
    for index, text in enumerate(RAGGED[: cases(2, 4)]):
        alone = run_of(model, [text], **options)
        rows = together.positions["prompt_id"] == str(index)
        assert together.positions.loc[rows, "next_token_id"].tolist() == alone.positions["next_token_id"].tolist()
        for column in ("entropy", "norm_ratio", "io_cosine", "kl_last_to_layer", "next_log_prob"):
            np.testing.assert_allclose(together.layers(column)[rows], alone.layers(column), atol=CLOSE, err_msg=column)
    answers = ll.generate(model, RAGGED, batch_size=3, strategy=ll.Valley(window=3), max_new_tokens=3)
    assert [one.text for one in answers] == together.prompts["output"].tolist()
    with refused(ll.PromptError, "chat_template", problem="is a list of messages"):
        ll.generate(model, [[{"role": "user", "content": "ab"}]], max_new_tokens=2)


def test_a_tokenizer_that_knows_fewer_tokens_than_the_model_emits(run_of):
    """What has no token adds nothing to the text, and its numbers stay."""
    hf = tiny_model("llama", tie_word_embeddings=False)
    n_known = len(tiny_tokenizer())
    with torch.no_grad():
        hf.lm_head.weight[n_known:] *= 3
    model = ll.load(hf, tokenizer=tiny_tokenizer())
    run = run_of(model, RAGGED, batch_size=2, max_new_tokens=8, strategy=ll.Valley(window=2), kl=True)
    emitted = run.positions["next_token_id"]
    assert (emitted >= n_known).any()
    assert_right(model, run, 2)
    for index, text in enumerate(run.prompts["output"]):
        ids = emitted[run.positions["prompt_id"] == str(index)]
        assert text == model.tokenizer.decode([one for one in ids if one < n_known], skip_special_tokens=True)


def test_a_token_that_the_model_does_not_have():
    model = ll.load(tiny_model("llama", vocab_size=68, tie_word_embeddings=False), tokenizer=tiny_tokenizer())
    assert len(ll.generate(model, "A!", max_new_tokens=2, eos_token_id=-1).token_ids) == 2
    with refused(ll.PromptError, given=68, problem="token 68", advice="own tokenizer"):
        ll.generate(model, "Ab", max_new_tokens=2)


INSIDE = ["<eos>", "ab<eos>", "<eos>ab", "a<eos><eos>b", "<bos>ab", "<pad>ab", "a<pad>b", "<|im_end|>", "a<|im_end|>b"]


def test_special_tokens_that_are_written_in_a_text(run_of):
    """They are what the tokenizer says, end no text, and are masked nowhere."""
    model = ll.load(tiny_model("llama", tie_word_embeddings=False), tokenizer=tiny_tokenizer())
    options = {"max_new_tokens": 3, "strategy": ll.Valley(window=4), "kl": True, "eos_token_id": -1}
    for size in (1, len(INSIDE)):
        run = run_of(model, INSIDE, batch_size=size, **options)
        assert run.prompts["n_generated_tokens"].eq(3).all()
        assert_right(model, run, 4)


def test_special_tokens_inside_a_message():
    """A template that marks turns with the end token: the text says where turns end, or the message is refused."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for one in messages %}{{ one.role }}:{{ one.content }}<eos>{% endfor %}"
    model = ll.load(tiny_model("llama"), tokenizer=tokenizer)
    for text in INSIDE:
        refused_or_done(lambda text=text: ll.generate(model, text, max_new_tokens=2))
    said = ll.generate(model, "ab", max_new_tokens=2)
    assert said.prompt == "user:ab<eos>"


@pytest.mark.parametrize("text", ["zzz", "\n", "1", "é"])
@pytest.mark.parametrize("n_new", [0, 2])
def test_a_text_without_a_token(text, n_new, run_of):
    model = ll.load(tiny_model("llama", vocab_size=2), tokenizer=letters())
    with refused(ll.PromptError, problem="no tokens" if text != "\n" else "empty"):
        run_of(model, ["ab", text], max_new_tokens=n_new)


def test_a_normalizer_that_leaves_nothing():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("x", "")
    model = ll.load(tiny_model("llama"), tokenizer=tokenizer)
    with refused(ll.PromptError, given="xxx", problem="no tokens"):
        ll.generate(model, "xxx", max_new_tokens=2)
    assert ll.generate(model, "xax", max_new_tokens=2).token_ids == ll.generate(model, "a", max_new_tokens=2).token_ids


def test_answers_that_end_with_their_first_token(run_of, tmp_path):
    """The end token is recorded, no text follows, and every command shows such a run or says what it lacks."""
    model = ll.load(tiny_model("llama", tie_word_embeddings=False), tokenizer=tiny_tokenizer())
    firsts = [ll.generate(model, text, max_new_tokens=1).token_ids[0] for text in RAGGED]
    ends = {"max_new_tokens": 5, "eos_token_id": sorted(set(firsts))}
    for strategy in (ll.Last(), ll.Valley(window=1), ll.Fixed(0))[: cases(1, 3)]:
        for size in (1, 3):
            run = run_of(model, RAGGED, strategy=strategy, batch_size=size, **ends, **EVERYTHING)
            assert run.prompts["finish_reason"].tolist() == ["stop"] * 4
            assert run.prompts["n_generated_tokens"].tolist() == [1] * 4
            assert run.positions["next_token_id"].tolist() == firsts
            assert run.prompts["output"].tolist() == [model.tokenizer.decode([one]) for one in firsts]
            answers = ll.generate(model, RAGGED, strategy=strategy, batch_size=size, **ends)
            assert [one.token_ids for one in answers] == [[one] for one in firsts]
    model = ll.load(_first_is_the_end(), tokenizer=tiny_tokenizer())
    run = run_of(model, RAGGED, batch_size=2, max_new_tokens=3, **EVERYTHING)
    assert run.prompts["output"].tolist() == [""] * 4
    assert run.positions["next_token_id"].tolist() == [2] * 4
    show_everything(run.path, tmp_path)


def _first_is_the_end():
    """A model whose every token is the end token: the final norm's output is pushed in the direction of its row."""
    hf = tiny_model("gpt2", tie_word_embeddings=False)
    with torch.no_grad():
        hf.transformer.ln_f.bias += 30 * hf.lm_head.weight[2]
    return hf


def show_everything(run, folder):
    """What every command that shows a run says: "" where it showed it, else one sentence."""
    figures = ["1", "7"] if not IS_HARD else list(map(str, ll.plot.KNOWN))
    said = {f"figure {one}": knock("figure", one, "--run", run, "--out", folder / "figures") for one in figures}
    for name, *arguments in (
        ("table", "all", "--run", run, "--out", folder / "tables"),
        ("report", run, "--out", folder / "report.html"),
        ("export", run, "--out", folder / "export.csv"),
        ("compare", run, run, "--out", folder / "compared"),
        ("bench", "analysis", "--run", run),
    ):
        said[name] = knock(name, *arguments)
    return said


SMALL = {"hidden_size": 8, "intermediate_size": 8, "head_dim": 4, "num_attention_heads": 2, "num_key_value_heads": 1}
ALONE = {"num_attention_heads": 1, "num_key_value_heads": 1}
SHAPES = {
    "one layer": {"num_hidden_layers": 1},
    "two tokens": {"vocab_size": 2},
    "two tokens, one layer": {"vocab_size": 2, "num_hidden_layers": 1},
    "a state of one number": {"hidden_size": 1, "head_dim": 2, **ALONE},
    "a state of two numbers": {"hidden_size": 2, "head_dim": 2, **ALONE},
    "one head": ALONE,
    "many layers": {"num_hidden_layers": cases(12, 300), **SMALL},
    "many tokens": {"vocab_size": cases(30_011, 1_000_003), "num_hidden_layers": 2, **SMALL},
    "all tokens tie": {},
    "tokens tie in pairs": {},
    "layers tie": {"num_hidden_layers": 6},
}
PROMPTS = ["ab", "b", "abba"]


def odd(shape):
    """A model of that shape, and its tokenizer."""
    hf = tiny_model("llama", tie_word_embeddings=False, **SHAPES[shape])
    with torch.no_grad():
        if shape == "all tokens tie":
            hf.lm_head.weight[:] = hf.lm_head.weight[17] * (torch.arange(48) == 5)
        if shape == "tokens tie in pairs":  # a product of one term is exact, in whatever order a kernel adds
            hf.lm_head.weight *= torch.arange(307).unsqueeze(1) // 2 % 48 == torch.arange(48)
            hf.lm_head.weight[1::2] = hf.lm_head.weight[:-1:2]
        if shape == "layers tie":  # the last three blocks change nothing
            for block in hf.model.layers[-3:]:
                block.self_attn.o_proj.weight.zero_()
                block.mlp.down_proj.weight.zero_()
    return ll.load(hf, tokenizer=letters() if SHAPES[shape].get("vocab_size") == 2 else tiny_tokenizer())


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_that_few_models_have(shape, run_of):
    """A trace and every strategy, for a window of one layer and of all."""
    model = odd(shape)
    n_layers, n_vocab = model.n_layers, model.n_vocab
    options = {"max_new_tokens": 2, "eos_token_id": -1, "batch_size": 3}
    for window in (1, n_layers):
        top = min(20, n_vocab) if window > 1 else 0
        strategy = ll.Valley(window=window)
        run = run_of(model, PROMPTS, strategy=strategy, window=window, top=top, **options, **EVERYTHING)
        assert_right(model, run, window)
        if shape == "all tokens tie":
            np.testing.assert_allclose(run.layers("entropy"), math.log(n_vocab), rtol=1e-6)
            assert run.positions["next_token_id"].eq(0).all()
            assert run.positions["valley_layer"].eq(n_layers).all()
        if shape == "layers tie" and window > 1:
            assert run.positions["valley_layer"].isin([n_layers]).all(), "a tie ends the walk"
            assert (run.layers("norm_ratio")[:, -3:] == 0).all()
        for scan in ("batched", "lazy"):
            decoded = ll.generate(model, PROMPTS, strategy=ll.Valley(window=window, scan=scan), **options)
            together = [token_id for one in decoded for token_id in one.token_ids]
            assert together == run.positions["next_token_id"].tolist()
    with refused(ll.OptionError, "window"):
        ll.generate(model, "ab", strategy=ll.Valley(window=n_layers + 1), **options)
    for offset in {0, n_layers - 1}:
        for one in ll.generate(model, PROMPTS, strategy=ll.Fixed(offset), **options):
            given = model.tokenizer(one.prompt).input_ids
            expected = right(model, [*given, *one.token_ids], len(given))["log_probs"]
            assert_emitted(expected, [n_layers - offset] * 2, one.token_ids)
    with refused(ll.OptionError, "offset"):
        ll.generate(model, "ab", strategy=ll.Fixed(n_layers), **options)
    with refused(ll.OptionError, "top"):
        run_of(model, PROMPTS, top=n_vocab + 1, **options)


def states(model, ids):
    """Logits of layers 0..L at the last place of a text, with the final norm and without it, [1, vocab] each."""
    blocks, tail = reference.structure(model.hf)
    seen = reference.watch(model.hf, blocks, torch.tensor([ids]))
    streams = [stream[:, -1] for stream in (seen.h_in[0], *seen.h_out)]
    whole, bare = (reference.own_readout(model.hf, modules) for modules in (tail, []))
    return whole(streams[-1]).numpy(), [bare(stream).numpy() for stream in streams[:-1]]


@pytest.mark.parametrize("shape", list(SHAPES)[:: cases(2, 1)])
def test_contrasts_of_shapes_that_few_models_have(shape):
    """DoLa and SLED, token by token against their formulas in float64."""
    model = odd(shape)
    if model.n_vocab > 1000 or model.n_layers > 20 or shape == "all tokens tie":  # any ten of them are the first ten
        strategies = {ll.DoLa(per="row"): lambda last, early: None, ll.SLED(scale=3): lambda last, early: None}
    else:
        low, high = (half_written_out(name, model.n_layers, tied=False) or [0] for name in ("low", "high"))
        strategies = {
            ll.DoLa(per="row"): lambda last, early: dola(last, [early[layer] for layer in low])[0],
            ll.DoLa("high", per="row"): lambda last, early: dola(last, [early[layer] for layer in high])[0],
            ll.SLED(): lambda last, early: sled(last, early),
        }
    for strategy, formula in strategies.items():
        for one in ll.generate(model, PROMPTS, strategy=strategy, max_new_tokens=2, eos_token_id=-1, batch_size=3):
            ids = model.tokenizer(one.prompt).input_ids
            for token_id in one.token_ids:
                scores = formula(*states(model, ids))
                assert 0 <= token_id < model.n_vocab
                if scores is not None:
                    assert scores[0, token_id] >= scores.max() - CLOSE, (strategy, one.prompt, ids)
                ids = [*ids, token_id]


@pytest.mark.parametrize("shape", list(SHAPES)[:: cases(2, 1)])
def test_drafts_of_shapes_that_few_models_have(shape):
    """Drafts change no text; a policy that finds no block to leave out says so."""
    model = odd(shape)
    options = {"max_new_tokens": 4, "eos_token_id": -1, "strategy": ll.Valley(window=model.n_layers)}
    plain = ll.generate(model, "ab", **options)
    for draft in (ll.EveryOther(length=2), *[ll.ConfLayers(), ll.Swift(), ll.Clasp(), ll.KnapSpec()][: cases(1, 4)]):
        drafted, said = result_or_sentence(lambda draft=draft: ll.generate(model, "ab", draft=draft, **options))
        if said:
            assert model.n_layers < 4, said
            continue
        assert drafted.token_ids == plain.token_ids, draft


BROKEN = {
    "NaN in a block": (math.nan, torch.float32),
    "infinity in a block": (math.inf, torch.float32),
    "overflow in float16": (6e4, torch.float16),
    "overflow in bfloat16": (3e38, torch.bfloat16),
}
STRATEGIES = ("last", "valley", "valley-1", "valley+1", "last-1", "dola-low", "dola-high", "sled")
STATISTICS = (
    *("by_layer", "phases", "partition", "perturbation_parts", "parts_by_layer", "valleys"),
    *("substitutions", "replacements", "valley_statistics", "by_entropy_band", "by_relative_position", "walk_depths"),
    *("agreement", "earliest_agreement", "onset", "settling", "dispensable", "kind_jumps", "substitution_pairs"),
    *("class_shares", "overhead"),
)


def breaking(name, *, everywhere):
    """A model whose blocks make of every text, or of those with the token y alone, what is no number."""
    value, dtype = BROKEN[name]
    hf = tiny_model("llama", tie_word_embeddings=False).to(dtype)
    model = ll.load(hf, tokenizer=tiny_tokenizer())
    with torch.no_grad():
        block = hf.model.layers[2]
        if everywhere:
            block.post_attention_layernorm.weight.fill_(value)
        else:
            hf.model.embed_tokens.weight[model.tokenizer("y").input_ids[0], 5] = value
            for weight in (block.mlp.gate_proj.weight, block.mlp.up_proj.weight) if dtype == torch.float16 else ():
                weight[:, 5] = 10
                block.mlp.down_proj.weight[5] = 1
    return model


@pytest.mark.filterwarnings("ignore::layerlens.errors.Notice")
@pytest.mark.parametrize("name", list(BROKEN)[:: cases(2, 1)])
def test_blocks_that_break_every_text(name, run_of, tmp_path):
    """No strategy makes a token of what is no number, and no statistic makes a number of it."""
    model = breaking(name, everywhere=True)
    for strategy, draft in itertools.product(STRATEGIES, (None, ll.EveryOther(length=2))):
        found = []
        refused_or_done(
            lambda: found.extend(ll.generate(model, ["abc", "b"], strategy=strategy, draft=draft, max_new_tokens=3))  # noqa: B023
        )
        for one in found:
            assert (one.finish_reason, one.token_ids, one.text) == ("non_finite", [], ""), (strategy, draft)
    for number, options in enumerate(({}, {"mode": "replay", "positions": "all"}, {"max_new_tokens": 0})):
        run = run_of(model, ["abc", "b"], **{"max_new_tokens": 2, "batch_size": 2, **EVERYTHING, **options})
        assert run.prompts["finish_reason"].tolist() == ["non_finite"] * 2
        assert run.prompts["output"].tolist() == [""] * 2
        for statistic in STATISTICS:
            frame, said = result_or_sentence(getattr(run, statistic))
            if said:
                continue
            numbers = frame.select_dtypes("floating").to_numpy()
            assert not np.isinf(numbers).any(), statistic
            counts = [column for column in frame if str(column).startswith("n_")]
            assert (frame[counts].fillna(0) == 0).all(axis=None), (statistic, frame)
        if number == 0:
            said = show_everything(run.path, tmp_path)
            assert said["export"] == "", "the records are all there"
            assert said["figure 1"], "there is nothing to draw"


@pytest.mark.filterwarnings("ignore::layerlens.errors.Notice")
@pytest.mark.parametrize("name", list(BROKEN)[1 :: cases(4, 1)] + list(BROKEN)[: cases(0, 1)])
def test_statistics_leave_out_the_texts_that_broke(name, run_of):
    """What a run says of its texts is what it says without those that broke."""
    model = breaking(name, everywhere=False)
    options = {"max_new_tokens": 4, "strategy": ll.Valley(window=3), **EVERYTHING}
    mixed = run_of(model, ["abc", "b", "xzy", "def", "y"], **options)
    clean = run_of(model, ["abc", "b", "def"], **options)
    assert mixed.prompts["finish_reason"].tolist() == ["length", "length", "non_finite", "length", "non_finite"]
    assert mixed.manifest["totals"]["non_finite_prompts"] == 2
    for statistic in STATISTICS:
        frames, said = [], []
        for run in (mixed, clean):
            try:
                frames.append(getattr(run, statistic)())
            except LayerlensError as error:
                said.append(str(error))
        assert len(frames) in (0, 2), (statistic, said)
        if frames:
            of_mixed, of_clean = (frame.select_dtypes("number").to_numpy(dtype=float) for frame in frames)
            np.testing.assert_allclose(of_mixed, of_clean, rtol=1e-9, atol=1e-9, err_msg=statistic)
