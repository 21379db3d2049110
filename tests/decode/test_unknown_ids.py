"""Token ids outside of a vocabulary, in either direction: embeddings, readout and tokenizer have sizes of their own."""

import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizer

import layerlens as ll
from layerlens.cli.text import marked
from layerlens.decode.prompts import end_token_ids, pad_token_id
from layerlens.decode.texts import decoded
from layerlens.models.tiny import tiny_model, tiny_tokenizer
from layerlens.tracing.token_texts import token_texts
from tests.refusals import refused

PROMPTS = ["hello", "a longer prompt"]


def theirs(hf, prompt: str, n: int, **options) -> list[int]:
    """What transformers emits greedily after a text alone."""
    ids = torch.tensor([tiny_tokenizer()(prompt).input_ids])
    out = hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False, **options)
    return out[0, ids.shape[1] :].tolist()


def with_readout(n_words: int):
    """A llama of 307 embeddings and another number of words in its readout."""
    hf = tiny_model("llama", tie_word_embeddings=False)
    torch.manual_seed(0)
    hf.lm_head = nn.Linear(48, n_words, bias=False)
    nn.init.normal_(hf.lm_head.weight)
    return ll.load(hf.eval(), tiny_tokenizer())


@pytest.mark.parametrize("pad_id", [259, None])
def test_rows_are_padded_with_an_id_that_has_an_embedding(pad_id, run_of):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    if pad_id is None:
        tokenizer.pad_token = None
    assert tokenizer.pad_token_id == pad_id
    hf = tiny_model("llama", vocab_size=259)
    hf.generation_config.eos_token_id = [2, 600, -1]
    model = ll.load(hf, tokenizer)
    alone = [theirs(hf, prompt, 4, eos_token_id=2) for prompt in PROMPTS]
    assert [one.token_ids for one in ll.generate(model, PROMPTS, max_new_tokens=4, batch_size=2)] == alone
    for mode in ("generate", "replay"):
        run = run_of(model, PROMPTS, max_new_tokens=4, batch_size=2, mode=mode)
        assert [list(ids) for _, ids in run.positions.groupby("prompt_id")["next_token_id"]] == alone
    run = run_of(model, PROMPTS, max_new_tokens=0, batch_size=2)
    assert run.prompts["n_prompt_tokens"].tolist() == [5, 15]


@pytest.mark.parametrize("ends", [-1, [-1], [-1, 5000], 307])
def test_end_ids_that_cannot_be_emitted_end_nothing(ends, run_of):
    hf = tiny_model("llama")
    hf.generation_config.eos_token_id = ends
    model = ll.load(hf, tiny_tokenizer())
    assert end_token_ids(model) == []
    alone = [theirs(hf, prompt, 5, eos_token_id=None) for prompt in PROMPTS]
    options = {"max_new_tokens": 5, "min_new_tokens": 2, "batch_size": 2}
    assert [one.token_ids for one in ll.generate(model, PROMPTS, **options)] == alone
    assert run_of(model, PROMPTS, **options).prompts["finish_reason"].tolist() == ["length"] * 2


def test_end_ids_that_are_asked_for(tiny_llama, run_of, tmp_path):
    emitted = ll.generate(tiny_llama, "hello", max_new_tokens=4, eos_token_id=-1).token_ids
    assert ll.generate(tiny_llama, "hello", max_new_tokens=4, eos_token_id=[-1, emitted[1]]).token_ids == emitted[:2]
    for wrong in (307, [2, 900], [-2]):
        with pytest.raises(ll.OptionError, match=r"0\.\.306"):
            ll.generate(tiny_llama, "hello", max_new_tokens=4, eos_token_id=wrong)
        with pytest.raises(ll.OptionError, match=r"0\.\.306"):
            ll.trace(tiny_llama, ["hello"], max_new_tokens=4, eos_token_id=wrong, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ll.OptionError, match="eos_token_id"):
        ll.generate(tiny_llama, "hello", max_new_tokens=4, eos_token_id=True)


def test_a_readout_smaller_than_the_embeddings(run_of):
    model = with_readout(280)
    tokenizer = model.tokenizer
    tokenizer.pad_token = None
    model.hf.generation_config.eos_token_id = 290  # has an embedding and is no word of the readout
    assert pad_token_id(model) == 0
    options = {"max_new_tokens": 6, "repetition_penalty": 1.3, "min_new_tokens": 2}
    alone = [theirs(model.hf, prompt, 6, repetition_penalty=1.3, eos_token_id=None) for prompt in PROMPTS]
    assert [one.token_ids for one in ll.generate(model, PROMPTS, batch_size=2, **options)] == alone
    run = run_of(model, PROMPTS, batch_size=2, **options)
    assert [list(ids) for _, ids in run.positions.groupby("prompt_id")["next_token_id"]] == alone


def test_a_token_without_an_embedding_is_emitted_and_not_read(run_of):
    model = with_readout(2000)
    last = ll.generate(model, PROMPTS, max_new_tokens=1, batch_size=2)
    assert [one.token_ids for one in last] == [theirs(model.hf, prompt, 1) for prompt in PROMPTS]
    beyond = next(one.token_ids[0] for one in last if one.token_ids[0] >= 307)
    assert all(one.text == "" for one in last if one.token_ids[0] >= 307)
    with refused(ll.ModelError, given=beyond):
        ll.generate(model, PROMPTS, max_new_tokens=3)
    with refused(ll.ModelError, given=beyond):
        run_of(model, PROMPTS, max_new_tokens=3)
    run = run_of(model, PROMPTS, max_new_tokens=0)
    tops = run.layers("top_token_id")
    assert tops.max() >= 307
    assert run.text_of([tops.max()]) == [f"#{tops.max()}"], "the tokenizer has no such token"

    prompt = next(prompt for prompt, one in zip(PROMPTS, last, strict=True) if one.token_ids[0] == beyond)
    ids = torch.tensor([model.tokenizer(prompt).input_ids])
    with ll.decoding(model, ll.Last()) as log:
        model.hf.generate(ids, max_new_tokens=1, do_sample=False)
        with pytest.raises(ll.ModelError, match=rf"token {beyond} "):
            model.hf.generate(ids, max_new_tokens=2, do_sample=False)
    assert log.steps["next_token_id"].tolist() == [beyond]


def test_ids_that_generate_cannot_look_up(tiny_llama):
    rows = torch.tensor([[5, 6], [7, 8]])
    with ll.decoding(tiny_llama, ll.Valley(window=2)) as log:
        for pad_id in (-1, 307):
            with pytest.raises(ll.OptionError, match=f"pad_token_id {pad_id} "):
                tiny_llama.hf.generate(rows, max_new_tokens=3, do_sample=False, pad_token_id=pad_id)
        with refused(ll.OptionError, given=308):
            tiny_llama.hf.generate(rows + 300, max_new_tokens=3, do_sample=False)
        assert len(log) == 0
        tiny_llama.hf.generate(rows[:1], max_new_tokens=3, do_sample=False, pad_token_id=307)  # pads nothing
    assert len(log) == 3


@pytest.mark.parametrize(("ends", "positions"), [([2, 0], [3, 3]), ([2], [3, 1]), (2, [3, 1]), (0, [3, 3])])
def test_positions_where_the_pad_id_ends_texts_too(tiny_llama, ends, positions):
    """transformers takes no pad token for padding that is among several end tokens."""
    rows = torch.tensor([[5, 6, 7, 8], [0, 0, 5, 6]])
    seen = []
    hook = tiny_llama.decoder.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs.get("position_ids")), with_kwargs=True
    )
    with hook, ll.decoding(tiny_llama, ll.Last()) as log:
        tiny_llama.hf.generate(rows, max_new_tokens=1, do_sample=False, pad_token_id=0, eos_token_id=ends)
    assert log.steps["position"].tolist() == positions == seen[-1].expand(2, -1)[:, -1].tolist()


class Letters(PreTrainedTokenizer):
    """One token a letter, in Python; of ids that it lacks it raises, says nothing, or says its unknown token."""

    def __init__(self, alphabet: str, lacking: str) -> None:
        self.ids = {letter: index for index, letter in enumerate(alphabet)}
        self.letters, self.lacking = dict(enumerate(alphabet)), lacking
        super().__init__(**({"unk_token": alphabet[0]} if lacking == "unknown" else {}))

    @property
    def vocab_size(self) -> int:
        return len(self.ids)

    def get_vocab(self) -> dict[str, int]:
        return dict(self.ids)

    def _tokenize(self, text: str, **_) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int | None:
        return self.ids[token] if self.lacking == "raises" else self.ids.get(token)

    def _convert_id_to_token(self, index: int) -> str | None:
        if self.lacking == "raises":
            return self.letters[index]
        return self.letters.get(index, self.letters[0] if self.lacking == "unknown" else None)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)


@pytest.mark.parametrize("lacking", ["raises", "nothing", "unknown"])
@pytest.mark.parametrize("alphabet", ["?ACGT ", "?abc "])
def test_ids_that_a_tokenizer_does_not_know(alphabet, lacking, run_of):
    tokenizer = Letters(alphabet, lacking)
    model = ll.load(tiny_model("llama"), tokenizer)
    text = alphabet[1:4]
    assert decoded(tokenizer, [300, 1, 2, 200, 3]) == text
    known = {index: alphabet[index] for index in (1, 3, 5) if index < len(alphabet)}
    assert token_texts(tokenizer, [1, 3, 5, 200]) == known
    found = ll.generate(model, [text], max_new_tokens=6, strategy=ll.Valley(window=3))[0]
    assert found.text == "".join(alphabet[index] for index in found.token_ids if index < len(alphabet))
    for options in ({"max_new_tokens": 6}, {"max_new_tokens": 6, "mode": "replay"}, {"max_new_tokens": 0}):
        run = run_of(model, [text], **options)
        ids = {*run.layers("top_token_id").ravel().tolist(), *run.positions["token_id"].tolist()}
        assert run.text_of(sorted(ids)) == [alphabet[i] if i < len(alphabet) else f"#{i}" for i in sorted(ids)]
    changed = found.steps[found.steps["next_token_id"] != found.steps["last_token_id"]]
    assert len(changed)
    shown = "".join(piece for piece, _ in marked(model, found, ("⟦", "⟧"), sampled=False))
    for emitted in changed["next_token_id"]:
        assert f" -> #{emitted}⟧" in shown or emitted < len(alphabet)
    with pytest.raises(ll.PromptError, match="prompt 0 "):
        ll.generate(model, ["é"], max_new_tokens=1)


def test_a_picture_s_placeholder_is_read_as_a_word(run_of):
    hf = tiny_model("chameleon")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<{index}>" for index in range(259, 300)] + ["<image>"])
    model = ll.load(hf, tokenizer)
    text = "a<image>b"
    assert tokenizer(text).input_ids[1] == hf.config.image_token_id == 300
    ids = torch.tensor([tokenizer(text).input_ids])
    top = hf(input_ids=ids).logits.argmax(-1)[0].tolist()
    assert run_of(model, [text], max_new_tokens=0).layers("top_token_id")[:, -1].tolist() == top
