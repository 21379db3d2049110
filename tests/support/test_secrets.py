"""A key or a password that is given in an address or an option is written nowhere."""

import sys

import pytest

import layerlens as ll
from layerlens.secrets import redacted, without_secrets

SECRET = "Zq7secretZq7"
KEY = f"sk-{SECRET}0123456789"


@pytest.mark.parametrize(
    "text",
    [
        f"https://user:{SECRET}@host/path",
        f"https://{SECRET}@host",
        f"https://host/v1?api_key={SECRET}&model=x",
        f"https://host/v1?token={SECRET}",
        f"api_key={SECRET}",
        f"--engine-option hf_token={SECRET}",
        f'{{"password": "{SECRET}"}}',
        f"AWS_SECRET_ACCESS_KEY={SECRET}",
        KEY,
        f"hf_{SECRET}0123456789",
        f"ghp_{SECRET}0123456789",
    ],
)
def test_secrets_are_left_out(text):
    assert SECRET not in without_secrets(text)
    assert "***" in without_secrets(text)


@pytest.mark.parametrize(
    "text",
    [
        *("--max-new-tokens 3", "eos_token=</s>", "add_special_tokens=true", "https://host/path?model=x", "key=value"),
        *("user@host.org", "a token: b", "Qwen/Qwen3-4B", "sk-learn", "hf_home", "the secret of it"),
    ],
)
def test_what_is_no_secret_stays(text):
    assert without_secrets(text) == text


def test_entries_of_mappings():
    given = {"url": f"https://a:{SECRET}@b", "more": [{"api_key": SECRET, "n": 3}], "eos_token": "x", "kept": None}
    assert redacted(given) == {
        "url": "https://***@b",
        "more": [{"api_key": "***", "n": 3}],
        "eos_token": "x",
        "kept": None,
    }


def test_a_planted_secret_reaches_no_file_and_no_message(tiny_folder, tmp_path, cli, monkeypatch):
    arguments = ["trace", "--model", tiny_folder("llama"), "--dataset", "sample", "--limit", "1", "--device", "cpu"]
    arguments += ["--max-new-tokens", "2", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["layerlens", *arguments, "--url", f"https://me:{SECRET}@host", KEY])
    assert cli(*arguments)[0] == 0
    assert cli("report", tmp_path / "run", "--out", tmp_path / "run.html")[0] == 0
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 4
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path
    assert any("***" in word for word in ll.open_run(tmp_path / "run").manifest["command"])
    for words in (["report", f"https://me:{SECRET}@host/x"], ["generate", "--model", KEY, "--prompt", "a"]):
        code, out, err = cli(*words)
        assert code == 2
        assert SECRET not in out + err
