"""Words that are not UTF-8, and standard output that is full or closed: one sentence, never a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import layerlens as ll
import layerlens.cli
from layerlens.cli.streams import notices, output

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


@pytest.fixture(scope="module")
def run(tiny_llama, tmp_path_factory):
    out = tmp_path_factory.mktemp("streams") / "run"
    return ll.trace(tiny_llama, ["one text", "another"], max_new_tokens=4, window=2, out=out, progress=False).path


@pytest.mark.parametrize("stream", [output, notices])
def test_what_a_stream_cannot_encode_is_written_as_escapes(stream, tmp_path):
    with (tmp_path / "said").open("w", encoding="ascii") as file:
        made = stream(file)
        made.write("3 → café, \U0001f600 and \udce9")
        made.close()
    assert (tmp_path / "said").read_bytes() == rb"3 \u2192 caf\xe9, \U0001f600 and \udce9"


@needs_full
@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "--version",
        "trace --help",
        "models",
        "datasets",
        "doctor",
        "table 8 --run RUN",
        "figure 2 --run RUN --out OUT",
        "report RUN --out OUT/report.html",
        "compare RUN RUN",
        "generate --model MODEL --prompt hi --max-new-tokens 2 --window 2",
        "generate --model MODEL --prompt hi --max-new-tokens 2 --window 2 --compare",
        "trace --model MODEL --dataset sample --limit 1 --max-new-tokens 2 --window 2 --out OUT",
    ],
)
def test_a_full_standard_output(command, run, tiny_folder, tmp_path, monkeypatch, capsys):
    places = {"RUN": run, "MODEL": tiny_folder("llama"), "OUT": tmp_path / "out"}
    words = [str(places.get(word, word)).replace("OUT/", f"{tmp_path}/") for word in command.split()]
    with FULL.open("w") as full:
        monkeypatch.setattr(sys, "stdout", output(full))
        status = layerlens.cli.run(words)
        sys.stdout.close()
    said = capsys.readouterr().err
    assert status == 2, said
    assert "standard output" in said
    if words[0] == "trace" and "--out" in words:
        assert ll.open_run(tmp_path / "out").is_complete, "what was written stays"


@needs_full
def test_a_process_leaves_with_one_sentence():
    with FULL.open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "layerlens", "datasets"], stdout=full, stderr=subprocess.PIPE, text=True
        )
        mute = subprocess.run([sys.executable, "-m", "layerlens", "datasets", "x"], stdout=full, stderr=full)
    assert (done.returncode, done.stderr.count("\n"), done.stderr[:10]) == (2, 1, "layerlens:")
    assert mute.returncode == 2


@pytest.mark.parametrize("command", ["datasets", "table 8 --run RUN"])
def test_a_closed_pipe_is_left_quietly(command, run):
    reading, writing = os.pipe()
    os.close(reading)
    words = [str(run) if word == "RUN" else word for word in command.split()]
    done = subprocess.run([sys.executable, "-m", "layerlens", *words], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert done.returncode == 1
    assert all(line.startswith(b"layerlens: ") for line in done.stderr.splitlines())


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "--model", "MODEL", "--prompt", "caf\udce9"],
        ["generate", "--model", "MODEL", "--prompt", "x", "--system", "caf\udce9"],
        ["trace", "--model", "MODEL", "--prompts", "caf\udce9.txt", "--out", "OUT"],
        ["trace", "--model", "MODEL", "--dataset", "sample", "--out", "OUT\udce9"],
        ["report", "caf\udce9"],
        ["caf\udce9"],
    ],
)
def test_words_that_are_not_utf8(arguments, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = cli(*arguments)
    assert (status, out) == (2, "")
    assert r"\udce9" in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
