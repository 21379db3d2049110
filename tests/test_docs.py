"""The documentation's code runs as it stands, and names what there is."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
import torch

import layerlens as ll
from layerlens.decode import registry as names
from layerlens.decode.criteria import CRITERIA
from layerlens.models.tiny import tiny_model, tiny_tokenizer
from layerlens.records.schema import FINISH_REASONS, PROMPTS, WORDS, all_token_columns

ROOT = Path(__file__).resolve().parents[1]
DECODING = (ROOT / "docs" / "decoding.md").read_text(encoding="utf-8")
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", DECODING, re.DOTALL)


def test_a_strategy_of_your_own_works_in_every_door(monkeypatch, run_of):
    """The one that the documentation shows, by its name, in the loop, in a trace and inside transformers' generate."""
    monkeypatch.setattr(names, "_REGISTERED", dict(names._REGISTERED))
    model = ll.load(tiny_model("llama"), tokenizer=tiny_tokenizer())
    exec(compile(BLOCKS[1], "decoding.md", "exec"), {"model": model, "__name__": "docs"})
    strategy = ll.named_strategy("mean-of-two")
    found = ll.generate(model, "Hello there", strategy=strategy, max_new_tokens=12)
    ids = model.tokenizer("Hello there", return_tensors="pt").input_ids
    for _ in range(12):  # plainly: two readouts of a full pass
        states = model.hf.model(ids, output_hidden_states=True).hidden_states
        two = [model.hf.lm_head(state) for state in (model.hf.model.norm(states[3][:, -1]), states[4][:, -1])]
        ids = torch.cat([ids, ((two[0] + two[1]) / 2).argmax(1, keepdim=True)], 1)
    assert found.token_ids == ids[0, -12:].tolist()
    assert (found.steps["projections"] == 2).all()
    run = run_of(model, ["Hello there"], strategy=strategy, max_new_tokens=12)
    assert run.positions["next_token_id"].tolist() == found.token_ids
    assert run.manifest["strategy"] == {"name": "mean-of-two"}
    with pytest.raises(ll.OptionError, match="already"):
        ll.register_strategy("mean-of-two", type(strategy))


def test_every_strategy_and_criterion_is_documented():
    for name in (*names.strategy_names(), *CRITERIA):
        assert f"`{name}`" in DECODING or f"`{name}-" in DECODING or name == "fixed", name
    options = ("min_new_tokens", "repetition_penalty", "stop_strings", "eos_token_id", "entropy_floor")
    for option in (*options, "chat_template_args", "add_special_tokens", "--chat-template-arg"):
        assert f"`{option}" in DECODING


def test_every_recorded_column_is_on_the_page_of_records():
    page = (ROOT / "docs" / "records.md").read_text(encoding="utf-8")
    columns = {column.name for column in (*all_token_columns(), *PROMPTS, *WORDS)}
    in_tables = {name for line in page.splitlines() if line.startswith("|") for name in re.findall(r"`(\w+)`", line)}
    assert columns <= in_tables
    assert set(FINISH_REASONS) <= in_tables


@pytest.mark.filterwarnings("ignore::layerlens.errors.Notice")  # a tiny model's context cuts the texts of the fit
def test_the_tutorial_can_be_followed(cli, tiny_folder, tmp_path, monkeypatch):
    """Its file, its commands and its code, in order, on a tiny model in place of the one that it names."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder("llama"), "smollm2-135m-instruct")
    config = Path("smollm2-135m-instruct/tokenizer_config.json")
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": template}))
    names = {}
    for language, text in re.findall(r"```(\w+)\n(.*?)```", TUTORIAL, re.DOTALL):
        if language == "json":
            Path("prompts.jsonl").write_text(text)
        elif language == "bash":
            for line in text.splitlines():
                asked = line.replace("--model ", "--model ./").replace("--max-new-tokens 48", "--max-new-tokens 12")
                status, _, said = cli(*shlex.split(asked)[1:])
                assert status == 0, said
        else:
            exec(compile(text, "tutorial.md", "exec"), names)
    for name in ("figures/grid.png", "figures/figure4.png", "runs/logit/report.html"):
        assert Path(name).exists()
    logit, linear = (ll.open_run(f"runs/{name}") for name in ("logit", "linear"))
    assert len(logit.prompts) == 12
    assert linear.manifest["lens"]["kind"] == "linear"


def test_the_page_of_commands_is_what_help_says():
    """`python scripts/commands > docs/commands.md` makes it."""
    made = subprocess.run([sys.executable, ROOT / "scripts" / "commands"], capture_output=True, text=True, check=True)
    assert made.stdout == (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The documentation as built; a warning is an error."""
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    return out


def test_every_public_name_is_on_the_page_of_python(site):
    page = (site / "api" / "index.html").read_text(encoding="utf-8")
    shown = set(re.findall(r'id="layerlens\.[\w.]*?(\w+)"', page))
    elsewhere = {"plot"}  # a module: its functions are on the page
    assert set(ll.__all__) - elsewhere <= shown
    assert {
        "contributions",
        "io_cosine",
        "entropy_partition",
        "lens_grid",
        "onset",
        "settling",
        "perturbation_parts",
    } <= shown


def test_the_pages_fetch_nothing_from_elsewhere(site):
    """Nothing is loaded from another host when a page is read; links a reader may follow are no loads."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loads = re.findall(r'<(?:script|img|iframe|source)[^>]*\ssrc="(https?:)?//', text)
        loads += re.findall(r'<link[^>]*rel="(?:stylesheet|preconnect|icon)"[^>]*href="https?://', text)
        assert not loads, page


def test_commands_that_are_shown_exist():
    """Every sub-command and option after `layerlens` in the documentation and the README."""
    shown = {}
    for page in [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]:
        for line in re.findall(
            r"^(?: {4}|\$ )(?:\$ )?layerlens ([a-z-]+ .*)$", page.read_text(encoding="utf-8"), re.MULTILINE
        ):
            command = line.split("#")[0].split()
            name = " ".join(command[: 2 if command[0] in ("bench", "fit-lens") else 1])
            shown.setdefault(name, set()).update(word for word in command if word.startswith("--"))
    assert {"trace", "figure", "table", "report", "ablate", "bench trace", "bench analysis"} <= set(shown)
    for command, options in shown.items():
        asked = [*command.split(), "--help"]
        done = subprocess.run([sys.executable, "-m", "layerlens", *asked], capture_output=True, text=True)
        assert done.returncode == 0, command
        missing = {option for option in options if option not in unescape(done.stdout)}
        assert not missing, (command, missing)
