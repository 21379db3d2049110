"""Chats that are written out already, told from questions by what the template itself writes; and its variables."""

import pytest

import layerlens as ll
from layerlens.datasets import from_prompts
from layerlens.decode.options import GenerateOptions, settle_chat_template
from layerlens.decode.prompts import tokenize
from layerlens.models.tiny import tiny_model, tiny_tokenizer
from tests.refusals import refused

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT_SYSTEM = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}" + CHATML
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}{{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
VICUNA = (
    "{{ bos_token }}A chat between a user and an assistant. {% for m in messages %}"
    "{% if m.role == 'user' %}USER: {{ m.content }} {% else %}ASSISTANT: {{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
QUOTES = "{% for m in messages %}'{{ m.content }}'{% endfor %}"
SPECIAL = {
    "chatml": ["<|im_start|>", "<|im_end|>"],
    "gemma": ["<start_of_turn>", "<end_of_turn>"],
    "phi": ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"],
    "mistral": ["[INST]", "[/INST]"],
}
TEMPLATES = {
    "chatml": CHATML, "default": DEFAULT_SYSTEM, "gemma": GEMMA, "phi": PHI, "mistral": MISTRAL, "vicuna": VICUNA,
    "quotes": QUOTES,
}  # fmt: skip
WRITTEN = [
    ("chatml", "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"),
    ("chatml", "<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"),
    ("chatml", "Be brief. <|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant"),
    ("default", "  <|im_start|>user\nhi<|im_end|>"),
    ("default", "Be brief. <|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"),
    ("gemma", "<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n"),
    ("gemma", "<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n"),
    ("phi", "<|user|>\nhi<|end|>\n<|assistant|>\n"),
    ("phi", "<|system|>\nBe brief<|end|>\n<|user|>\nhi<|end|>\n"),
    ("phi", "<|user|> hi<|end|><|assistant|>"),
    ("mistral", "<bos>[INST] hi [/INST]"),
    ("mistral", "[INST]hi[/INST]"),
    ("mistral", "[INST] hi [/INST] yes<eos>[INST] why? [/INST]"),
    ("vicuna", "USER: hi ASSISTANT:"),
    ("vicuna", "A chat between a user and an assistant. USER: hi ASSISTANT:"),
    ("vicuna", "USER: hi ASSISTANT: hello<eos>USER: why? ASSISTANT:"),
]
QUESTIONS = [
    "Why is the sky blue?",
    "user",
    "What does <|im_start|> mean in <|im_start|>user?",
    "In a prompt, what do [INST] and [/INST] mean?",
    "Is <start_of_turn>user\nhi<end_of_turn> a turn of Gemma's?",
    "What follows <|user|> and <|end|>, please?",
    "USER: who are you?",
    "The word USER: stands before ASSISTANT: in it.",
    "'Hello' is a greeting, and 'bye'",
    "",
]


def tokenizer_with(template, special=()):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    tokenizer.add_tokens(list(special), special_tokens=True)
    return tokenizer


def asked(text, template, special=(), **options):
    model = ll.load(tiny_model("llama"), tokenizer_with(template, special))
    settled = settle_chat_template(GenerateOptions(max_new_tokens=1, **options), True)
    return tokenize(model, from_prompts([text]).prompts, settled)[0].text


@pytest.fixture(scope="module")
def models():
    """A tiny model with each template, whose markers are special tokens of the tokenizer, or none."""
    found = {}
    for name, template in TEMPLATES.items():
        for special in (True, False):
            tokens = SPECIAL.get("chatml" if name == "default" else name, []) if special else []
            found[name, special] = tokenizer_with(template, tokens)
    return found


def turns_of(tokenizer):
    from layerlens.decode.chat import ChatTemplate

    return ChatTemplate(tokenizer, GenerateOptions())._turns


@pytest.mark.parametrize("special", [True, False], ids=["special", "plain"])
@pytest.mark.parametrize(("name", "text"), WRITTEN)
def test_a_chat_that_is_written_out(name, text, special, models):
    assert turns_of(models[name, special]).found_in(text) is not None


@pytest.mark.parametrize("special", [True, False], ids=["special", "plain"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_question_is_none(name, special, models):
    turns = turns_of(models[name, special])
    assert [text for text in QUESTIONS if turns.found_in(text) is not None] == []


def test_what_the_template_wrote_is_always_found(models):
    for (name, special), tokenizer in models.items():
        chat = [{"role": "user", "content": "Why is the sky blue?"}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert (turns_of(tokenizer).found_in(text) is None) == (name == "quotes"), (name, special)


def test_every_door_refuses_it_and_takes_it_as_messages():
    text = "<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n"
    model = ll.load(tiny_model("llama"), tokenizer_with(GEMMA))
    with refused(ll.PromptError, "chat_template", "<start_of_turn>user"):
        ll.generate(model, text, max_new_tokens=1)
    assert asked([{"role": "user", "content": text}], GEMMA).count("<start_of_turn>user") == 2
    assert asked("hi", GEMMA) == f"<bos>{text}"


READS = {
    "read": ("{{ x }}", True),
    "in a condition": ("{% if x is defined and x %}a{% endif %}", True),
    "with a default of its own": ("{% if not x is defined %}{% set x = 1 %}{% endif %}{{ x }}", True),
    "from itself": ("{% set x = x | default(1) %}{{ x }}", True),
    "in a macro": ("{% macro f() %}{{ x }}{% endmacro %}{{ f() }}", True),
    "in a generation block": ("{% generation %}{{ x }}{% endgeneration %}", True),
    "in a loop that breaks": ("{% for m in messages %}{% if x %}{% break %}{% endif %}{% endfor %}", True),
    "set alone": ("{% set x = 1 %}{{ x }}", False),
    "a loop's": ("{% for x in messages %}{{ x.role }}{% endfor %}", False),
    "a macro's": ("{% macro f(x) %}{{ x }}{% endmacro %}{{ f(1) }}", False),
    "in a comment": ("{# x, {{ x }} #}", False),
    "in a string": ("{{ 'x' }}{% if 'x' in messages[0] %}{% endif %}", False),
    "in plain text": ("x ", False),
    "an attribute": ("{{ messages[0].x }}{% set n = namespace(x=1) %}{{ n.x }}", False),
    "raw": ("{% raw %}{{ x }}{% endraw %}", False),
    "a function of the environment": ("{{ x }}{{ namespace(y=1).y }}", True),
}


@pytest.mark.parametrize(("code", "is_read"), READS.values(), ids=READS)
@pytest.mark.parametrize("several", [False, True])
def test_variables_that_a_template_reads(code, is_read, several):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}" + code
    given = {"default": template, "tool_use": "{{ y }}{{ x }}"} if several else template
    if is_read:
        assert asked("hi", given, chat_template_args={"x": "ja"}).startswith("hi")
    else:
        with refused(ll.OptionError, "chat_template_args", problem="no effect"):
            asked("hi", given, chat_template_args={"x": "ja"})
    with refused(ll.OptionError, "chat_template_args", problem="no effect"):
        asked("hi", given, chat_template_args={"y": "ja"})


def test_a_variable_of_the_template_that_tools_select():
    templates = {"default": "{{ messages[0].content }}", "tool_use": "{{ messages[0].content }}{{ x }}"}
    assert asked("hi", templates, chat_template_args={"x": "ja", "tools": [{"a": 1}]}) == "hija"
    with pytest.raises(ll.OptionError, match="a_one, b_one"):
        asked("hi", {"b_one": CHATML, "a_one": CHATML})
