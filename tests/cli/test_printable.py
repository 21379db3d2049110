"""Names and messages that hold what a terminal obeys are shown, and not obeyed."""

import pytest

from layerlens.cli.printable import printable

RED, BACK, TURNED = "\x1b[31mred\x1b[0m", "a\rb\x08", "\u202eabc\u202c"


def test_what_a_terminal_obeys_is_written_as_escapes():
    assert printable(f"{RED} {BACK} {TURNED}") == "\\x1b[31mred\\x1b[0m a\\x0db\\x08 \\u202eabc\\u202c"
    assert printable("tab\tline\nümlaut שלום 漢字 ⟦x⟧") == "tab\tline\nümlaut שלום 漢字 ⟦x⟧"


@pytest.mark.parametrize("text", [RED, BACK, TURNED])
def test_messages_are_printable(cli, text, tmp_path):
    for arguments in (
        ("generate", "--model", text, "--prompt", "a"),
        ("trace", "--model", tmp_path, "--dataset", text, "--out", tmp_path / "run"),
        ("report", tmp_path / text),
        ("trace", text),
        (text,),
        ("figure", text, "--out", tmp_path),
        ("generate", "--model", tmp_path, "--prompt", "a", "--strategy", text),
        ("generate", "--model", tmp_path, "--prompt", "a", "--temperature", text),
    ):
        code, _, err = cli(*arguments)
        assert code == 2, arguments
        assert printable(err) == err
        assert "\r" not in err


def test_a_templates_own_message_is_printable(cli, tmp_path):
    from layerlens.models import tiny_model, tiny_tokenizer

    tiny_model("llama").save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('" + RED + "') }}"
    tokenizer.save_pretrained(tmp_path)
    code, _, err = cli("generate", "--model", tmp_path, "--prompt", "a", "--device", "cpu")
    assert code == 2
    assert "\\x1b[31mred" in err
    assert printable(err) == err
