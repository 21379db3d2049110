"""Prompts as chats and as plain texts: nothing is added twice, and nothing is left out in silence."""

import pytest
from tokenizers.processors import TemplateProcessing

import layerlens as ll
from layerlens.datasets import Dataset, Prompt, from_prompts
from layerlens.decode.options import GenerateOptions, settle_chat_template
from layerlens.decode.prompts import tokenize
from layerlens.errors import spelled
from layerlens.models.tiny import tiny_model, tiny_tokenizer
from tests.refusals import refused

CHAT = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}"
    "{% if thinks is defined and not thinks %}<quiet>{% endif %}{# never_read #}"
)
OF_TWO = (
    "{{ bos_token }}{% for m in messages %}{% if m.role in ('user', 'assistant') %}<{{ m.role }}>"
    "{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}{% endif %}{% endfor %}"
)
FOLDS = "{{ messages[0].content | upper }}{% for m in messages[1:] %}<{{ m.role }}>{{ m.content | tojson }}{% endfor %}"
PICKY = (
    "{% for m in messages %}{% if 'qz' in m.content %}{{ raise_exception('no') }}{% endif %}{{ m.content }}{% endfor %}"
)
HALF = "ok \ud83d bad"


def model_with(template: str | None, *, begins: str | None = "<bos> $A"):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    if begins is not None:
        tokenizer._tokenizer.post_processor = TemplateProcessing(
            single=begins, special_tokens=[("<bos>", 1), ("<pad>", 0), ("<eos>", 2)]
        )
    return ll.load(tiny_model("llama"), tokenizer)


def tokenized(model, prompts, **options):
    has_template = bool(model.tokenizer.chat_template)
    settled = settle_chat_template(GenerateOptions(max_new_tokens=1, **options), has_template)
    dataset = prompts if isinstance(prompts, Dataset) else from_prompts(prompts)
    return tokenize(model, dataset.prompts, settled)


def said(*turns: str) -> list[dict[str, str]]:
    return [dict(zip(("role", "content"), turn.split(":", 1), strict=True)) for turn in turns]


@pytest.mark.parametrize(
    ("begins", "text", "bare", "begun"),
    [
        ("<bos> $A", "hi", [74, 75], [1, 74, 75]),
        ("<bos> $A", "<bos>hi", [1, 74, 75], [1, 74, 75]),
        ("<bos> $A", "<bos>", [1], [1]),
        ("<bos> $A", "<bos><bos>hi", [1, 1, 74, 75], [1, 1, 74, 75]),
        ("<bos> <pad> $A <eos>", "<bos><pad>hi", [1, 0, 74, 75], [1, 0, 74, 75, 2]),
        ("<bos> <pad> $A <eos>", "<bos>hi", [1, 74, 75], [1, 0, 1, 74, 75, 2]),
        ("$A <eos>", "hi<eos>", [74, 75, 2], [74, 75, 2, 2]),
        (None, "<bos>hi", [1, 74, 75], [1, 74, 75]),
    ],
)
def test_a_text_never_gets_a_second_begin_token(begins, text, bare, begun):
    model = model_with(None, begins=begins)
    for special, expected in ((None, begun), (True, begun), (False, bare)):
        assert list(tokenized(model, [text], add_special_tokens=special)[0].token_ids) == expected


def test_special_tokens_around_what_a_template_wrote():
    without_begin = model_with(CHAT.removeprefix("{{ bos_token }}"))
    written = without_begin.tokenizer.apply_chat_template(said("user:hi"), tokenize=True)["input_ids"]
    for special, expected in ((None, written), (False, written), (True, [1, *written])):
        assert list(tokenized(without_begin, ["hi"], add_special_tokens=special)[0].token_ids) == expected
    with_begin = model_with(CHAT)
    assert list(tokenized(with_begin, ["hi"], add_special_tokens=True)[0].token_ids) == [1, *written]


def test_a_chat_written_out_already_is_not_wrapped_once_more(tmp_path):
    model = model_with(CHAT)
    written = "<bos><user>hi"
    with refused(ll.PromptError, "chat_template", "<bos>", advice="chat_template=False"):
        ll.generate(model, written, max_new_tokens=2)
    with refused(ll.PromptError, "chat_template", "<bos>", advice="chat_template=False"):
        ll.trace(model, ["ok", written], max_new_tokens=2, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    by_hand = ll.generate(model, written, max_new_tokens=2, chat_template=False)
    assert by_hand.token_ids == ll.generate(model, "hi", max_new_tokens=2).token_ids
    as_messages = tokenized(model, [said(f"user:{written}")])[0]
    assert as_messages.text == f"<bos><user>{written}", "whoever means it can still say it"


def test_variables_of_the_template(run_of, tmp_path):
    model = model_with(CHAT)
    texts = [
        tokenized(model, ["hi"], chat_template_args=given)[0].text
        for given in (None, {"thinks": False}, {"thinks": True})
    ]
    assert texts == ["<bos><user>hi", "<bos><user>hi<quiet>", "<bos><user>hi"]
    for wrong in ("thinkss", "never_read"):
        with refused(ll.OptionError, "chat_template_args", {wrong: False}):
            ll.generate(model, "hi", chat_template_args={wrong: False})
    with refused(ll.OptionError, "chat_template_args", {"thinks": False}):
        ll.generate(model_with(None), "hi", chat_template_args={"thinks": False})
    for wrong in ({"tokenize": True}, {"thinks": object()}, {"thinks": float("nan")}, {1: 2}, ["thinks"]):
        with refused(ll.OptionError, "chat_template_args", wrong):
            GenerateOptions(chat_template_args=wrong)
    with refused(ll.OptionError, "chat_template_args", {"thinks": False}, problem="chat_template=False"):
        GenerateOptions(chat_template_args={"thinks": False}, chat_template=False)


@pytest.mark.parametrize(
    ("option", "value"), [("chat_template_args", {"thinks": False}), ("add_special_tokens", False)]
)
def test_resuming_keeps_to_how_prompts_were_written(option, value, tmp_path):
    model = model_with(CHAT if option == "chat_template_args" else None)
    out = tmp_path / "run"
    run = ll.trace(model, ["hi"], out=out, max_new_tokens=1, progress=False, **{option: value})
    assert run.manifest["options"][option] == value
    ll.trace(model, ["hi"], out=out, max_new_tokens=1, progress=False, resume=True, **{option: value})
    with refused(ll.RunError, given=out, problem=spelled(option, value)):
        ll.trace(model, ["hi"], out=out, max_new_tokens=1, progress=False, resume=True)
    plain = ll.trace(model, ["hi"], out=tmp_path / "plain", max_new_tokens=1, progress=False)
    assert plain.manifest["options"][option] is None
    with refused(ll.RunError, given=tmp_path / "plain", problem=spelled(option, value)):
        ll.trace(
            model, ["hi"], out=tmp_path / "plain", max_new_tokens=1, progress=False, resume=True, **{option: value}
        )


@pytest.mark.parametrize(
    ("chat", "lost"),
    [
        (said("system:a", "user:hi"), "a"),
        (said("user:hi", "tool:x"), "x"),
        (said("user:hi", "assistant:x", "developer:hi"), "hi"),
        (said("user:hi", "assistant:<think>so</think>x", "user:hi"), None),
        (said("user: hi ", "assistant:x"), None),
    ],
)
def test_messages_that_a_template_leaves_out(chat, lost):
    model = model_with(OF_TWO)
    if lost is None:
        text = tokenized(model, [chat])[0].text
        assert text.startswith("<bos><user>")
        assert "<assistant>x" in text
        return
    with refused(ll.PromptError, given=lost, problem=f"message {len(chat) if chat[0]['role'] == 'user' else 1}"):
        tokenized(model, ["fine", chat])


def test_a_system_message_that_a_template_leaves_out(tmp_path):
    model = model_with(OF_TWO)
    with refused(ll.PromptError, "system", "i"):
        ll.generate(model, "hi", system="i", max_new_tokens=1)  # also one whose text stands in another message
    with refused(ll.PromptError, "system", "Be brief"):
        ll.trace(model, ["hi"], system="Be brief", out=tmp_path / "run", progress=False)
    assert tokenized(model_with(CHAT), ["hi"], system="Be brief")[0].text == "<bos><system>Be brief<user>hi"


def test_templates_that_write_messages_in_their_own_way():
    assert tokenized(model_with(FOLDS), ['say "hi"'], system="be brief")[0].text == 'BE BRIEF<user>"say \\"hi\\""'
    assert tokenized(model_with(PICKY), ["hi"], system="be brief")[0].text == "be briefhi"


@pytest.mark.parametrize(
    "prompt",
    [HALF, said(f"user:{HALF}"), said(f"{HALF}:hi"), Prompt(HALF, "hi"), Prompt("a", "hi", HALF)],
    ids=["text", "message", "role", "id", "reference"],
)
def test_prompts_that_are_not_utf8(prompt, tmp_path):
    for model in (model_with(None), model_with(CHAT)):
        if isinstance(prompt, list) and not model.tokenizer.chat_template:
            continue
        with pytest.raises(ll.PromptError, match=r"\\ud83d") as caught:
            ll.generate(model, [prompt], max_new_tokens=1)
        assert str(caught.value).isascii()
        with pytest.raises(ll.PromptError, match=r"\\ud83d"):
            ll.trace(model, [prompt], max_new_tokens=0, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options", [{"system": HALF}, {"stop_strings": ["a", HALF]}, {"chat_template_args": {"thinks": HALF}}]
)
def test_options_that_are_not_utf8(options):
    with pytest.raises(ll.OptionError, match=r"\\ud83d"):
        GenerateOptions(**options)


def test_names_that_are_not_utf8(tiny_llama, tmp_path):
    """What a record could not hold is refused before anything is written."""
    named = Dataset("caf\udce9.txt", None, None, None, None, (Prompt("a", "x"),))
    with pytest.raises(ll.OptionError, match=r"caf\\udce9"):
        ll.trace(tiny_llama, named, max_new_tokens=0, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
