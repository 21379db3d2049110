"""The HTML file itself: what it says, what it may do, how large it is."""

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

from layerlens.analysis.decoding import by_entropy_band, by_relative_position, valley_statistics
from layerlens.cli.summary import print_summary
from layerlens.errors import OptionError, RunError
from layerlens.report import explorer_html, write_report
from layerlens.report.facts import labels
from layerlens.report.markup import Markup, element, escaped, join
from layerlens.run import open_run
from layerlens.tracing.tracer import trace
from tests.analysis.test_no_torch import first_with_torch
from tests.conftest import tiny
from tests.made_up_run import hybrid_curves, hybrid_kinds, planted, write_run
from tests.refusals import refused

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&<!--]]>\u2028\u202e"
NO_TEXT = {"style", "script"}


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text a reader sees."""

    def __init__(self, content):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self._open = [], [], []
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self.elements.append(SimpleNamespace(tag=tag, attributes=dict(attrs), text=""))
        if tag not in ("meta", "img", "input", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] in NO_TEXT:
            self.elements[-1].text += data
        else:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def all(self, tag):
        return [found for found in self.elements if found.tag == tag]


@pytest.fixture
def run(tmp_path):
    curves = hybrid_curves()
    return write_run(tmp_path / "run", planted(curves, n_tokens=20, noise=0.1), layer_kinds=hybrid_kinds())


def page_of(run, tmp_path):
    return Page(write_report(run, tmp_path / "page.html").read_text(encoding="utf-8"))


def numbers(row, name, digits=".2f"):
    mean, low, high = (format(row[f"{name}{end}"], digits).replace("-", "−") for end in ("", "_low", "_high"))
    return f"{mean} [{low}, {high}]"


def test_it_says_what_was_run_and_found(run, tmp_path):
    page = page_of(run, tmp_path)
    assert [title.tag for title in page.elements if title.tag == "h1"] == ["h1"]
    assert "made up" in page.text
    assert "8 prompts of made up · 160 positions · 40 layers · decoded by last" in page.text
    assert "width 8, vocabulary 49,152" in page.text
    partition = run.partition().set_index("group")
    for group in ("perturbed", "unperturbed"):
        row = partition.loc[group]
        for name in ("entropy_before", "entropy_last", "entropy_change", "entropy_valley"):
            assert numbers(row, name) in page.text
        assert numbers(row, "share", ".1%") in page.text
    for phase in run.phases().to_dict("records"):
        assert numbers(phase, "norm_ratio") in page.text
        assert numbers(phase, "io_cosine") in page.text
    marks = run.valleys().set_index(["group", "mark"])
    valley = marks.loc[("perturbed", "V*")]
    assert valley["layer"] == 39  # as planted
    assert f"V* 39 [{int(valley['layer_low'])}, {int(valley['layer_high'])}]" in page.text
    onset = marks.loc[("perturbed", "V_onset")]
    onset_layers = [int(onset[name]) for name in ("layer", "layer_low", "layer_high")]
    assert "V_onset {} [{}, {}]".format(*onset_layers) in page.text
    assert "Phase Layers Norm ratio I/O cosine I 1–4" in page.text
    steps = valley_statistics(run).set_index("statistic")
    for statistic in ("valley_rate", "substitution_rate", "sure_rate_without_valley"):
        assert numbers(steps.loc[statistic], "value", ".1%") in page.text
    for statistic in ("entropy", "entropy_without_valley", "walk_depth"):
        assert numbers(steps.loc[statistic], "value") in page.text
    assert re.search(
        r"Nats With a valley Substituted n under 0.01 .* 0.01 to 0.05 .* 0.05 to 0.1 .* from 0.1 ", page.text
    )
    for rows in (by_entropy_band(run), by_relative_position(run)):
        for row in rows[rows["n_tokens"] > 0].to_dict("records"):
            rates = " ".join(numbers(row, name, ".1%") for name in ("valley_rate", "substitution_rate"))
            assert f"{rates} {row['n_tokens']}" in page.text
    assert "160 tokens of 8 prompts, 95 % intervals by resampling prompts" in page.text


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"threads": 7}, "a chip, a machine, a system, 7 threads"),
        ({"threads": 1}, "a chip, a machine, a system, 1 thread"),
        ({"threads": 1024}, "a chip, a machine, a system, 1,024 threads"),
        ({}, "a chip, a machine, a system"),
    ],
)
def test_it_says_what_it_ran_on_and_with_how_many_threads(given, shown, tmp_path):
    path = write_run(tmp_path / "run", planted(hybrid_curves(6), n_prompts=1)).path / "manifest.json"
    hardware = {"system": "a system", "machine": "a machine", "processor": "a chip", **given}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hardware": hardware}))
    texts = page_of(open_run(path.parent), tmp_path).texts
    assert texts[texts.index("Hardware") + 1] == shown


MEASURES = {
    "norm_ratio": "norm ratio",
    "one_minus_cosine": "1 − I/O cosine",
    "entropy_change": "entropy change",
    "confidence": "confidence",
    "vocab_confidence": "confidence over the vocabulary",
}


@pytest.fixture(scope="module")
def confident(tmp_path_factory):
    """Runs of a tiny model that were asked for confidences: of several prompts, and of one; and one that was not."""
    model, folder = tiny("llama", num_hidden_layers=8), tmp_path_factory.mktemp("confident")
    texts, options = ["Hello there", "What is it?", "x"], {"max_new_tokens": 6, "progress": False}
    runs = [
        trace(model, asked, out=folder / str(number), confidence=number < 2, **options)
        for number, asked in enumerate((texts, texts[:1], texts))
    ]
    return dict(zip(("several", "one", "not asked"), runs, strict=True))


def from_caption(page, caption):
    """The text of the page from each caption on that begins so; none where there is no such table."""
    begun = [at for at, text in enumerate(page.texts) if text.startswith(caption)]
    return [" ".join(" ".join(page.texts[at:]).split()) for at in begun]


def test_it_says_which_layers_do_least(confident, tmp_path):
    run = confident["several"]
    table = run.dispensable()
    assert len(table) == 10
    page = page_of(run, tmp_path)
    assert [*json.loads(page.all("script")[0].text)["measures"]][-2:] == ["confidence", "vocab_confidence"]
    [text] = from_caption(page, "Which layers do least")
    for row in table.to_dict("records"):
        line = f"{MEASURES[row['measure']]} and {MEASURES[row['other']]} {numbers(row, 'rho')}"
        assert f"{line} {row['shared']} of {row['n_lowest']}" in text
    assert "3 prompts, layers 2 to 7" in text


def test_one_prompt_says_which_layers_do_least_without_intervals(confident, tmp_path):
    page = page_of(confident["one"], tmp_path)
    [text] = from_caption(page, "Which layers do least")
    for row in confident["one"].dispensable().to_dict("records"):
        rho = f"{row['rho']:.2f}".replace("-", "−")
        line = f"{MEASURES[row['measure']]} and {MEASURES[row['other']]} {rho}"
        assert f"{line} {row['shared']} of {row['n_lowest']}" in text
    assert "nan" not in text.lower()


def test_a_run_that_was_not_asked_for_confidences_compares_no_layers(confident, run, tmp_path):
    for one in (confident["not asked"], run):
        assert not from_caption(page_of(one, tmp_path), "Which layers do least")


def test_too_few_layers_and_parts_that_cannot_be_told_apart_have_a_report_too(run_of, tmp_path):
    shallow = run_of(tiny("llama"), ["Hello"], max_new_tokens=3, confidence=True)
    page = page_of(shallow, tmp_path)
    assert not from_caption(page, "Which layers do least")
    assert "4 layers, too few to compare" in page.text
    null = run_of(tiny("mamba2", num_hidden_layers=6), ["Hello", "x"], max_new_tokens=3, confidence=True)
    [text] = from_caption(page_of(null, tmp_path), "Which layers do least")
    assert len(null.dispensable()) == 3
    for row in null.dispensable().to_dict("records"):
        assert f"{MEASURES[row['measure']]} and {MEASURES[row['other']]} {numbers(row, 'rho')}" in text
    assert "and confidence" not in text


def test_two_figures_are_inside(run, tmp_path):
    pictures = page_of(run, tmp_path).all("img")
    assert len(pictures) == 2
    for picture in pictures:
        kind, content = picture.attributes["src"].split(",", 1)
        assert kind == "data:image/svg+xml;base64"
        assert b"<svg" in base64.b64decode(content)
        assert len(picture.attributes["alt"]) > 20


@pytest.mark.parametrize("make", [explorer_html, None])
def test_only_our_script_and_style_may_run(run, tmp_path, make):
    content = make(run) if make else write_report(run, tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(content)
    [policy] = [m.attributes["content"] for m in page.all("meta") if "http-equiv" in m.attributes]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert rules["base-uri"] == rules["form-action"] == "'none'"
    code = [script for script in page.all("script") if script.attributes.get("type") != "application/json"]
    for rule, parts in (("script-src", code), ("style-src", page.all("style"))):
        [part] = parts
        assert "unsafe" not in rules[rule]
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(part.text.encode()).digest()).decode()}'"
    for found in page.elements:
        assert not [name for name in found.attributes if name.startswith("on") or name in ("href", "style")]
        assert found.tag not in ("link", "iframe", "object", "base")
    assert not re.search(
        r"(?:src|url)\s*[=(]\s*[\"']?(?!data:)\w", re.sub(r"<script.*?</script>", "", content, flags=re.S)
    )


def test_texts_of_a_run_never_become_markup(tmp_path):
    entropy = np.ones((5, 9))
    words = {0: HOSTILE, 1: "</script>", 2: "<!--"}
    run = write_run(tmp_path / "run", {HOSTILE: {"entropy": entropy}}, words=words, strategy=HOSTILE)
    manifest = json.loads((run.path / "manifest.json").read_text())
    manifest["model"]["source"] = HOSTILE + "\ud800"
    manifest["model"]["layer_kinds"] = [HOSTILE] * 9
    manifest["dataset"]["name"] = HOSTILE
    manifest["command"] = [HOSTILE]
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    run = open_run(run.path)
    for content in (write_report(run, tmp_path / "page.html").read_text(encoding="utf-8"), explorer_html(run)):
        assert "<script>alert" not in content
        assert "<img src=x" not in content
        page = Page(content)
        assert [script.attributes.get("type") for script in page.all("script")] == ["application/json", None]
        data = json.loads(page.all("script")[0].text)
        assert data["prompts"][0]["id"] == HOSTILE
        assert data["kinds"][0] == HOSTILE
        assert not set("<>&\u2028\u2029") & set(page.all("script")[0].text)
        assert " ".join((HOSTILE + "\ufffd").split()) in page.text
        content.encode("utf-8")


def test_elements_escape_all_but_markup():
    assert element("p", "<b>", Markup("<i>x</i>"), "&\"'") == "<p>&lt;b&gt;<i>x</i>&amp;&quot;&#x27;</p>"
    assert element("p", attributes={"title": '"><script>'}) == '<p title="&quot;&gt;&lt;script&gt;"></p>'
    assert join("<", Markup("<")) == "&lt;<"
    assert escaped("a\ud800b") == "a\ufffdb"
    assert html.unescape(escaped(HOSTILE)) == HOSTILE


def test_one_prompt_has_no_interval(tmp_path):
    run = write_run(tmp_path / "run", planted(hybrid_curves(9), n_prompts=1))
    page = page_of(run, tmp_path)
    assert "The run has one prompt, so its means have no intervals" in page.text
    share = run.partition().set_index("group").loc["perturbed", "share"]
    assert f"Perturbed tokens {share:.1%} the last layer" in page.text
    assert "nan" not in page.text.lower()


def test_few_prompts_are_said_to_be_few(tmp_path):
    run = write_run(tmp_path / "run", planted(hybrid_curves(6), n_prompts=3))
    assert "With 3 prompts the intervals are too narrow" in page_of(run, tmp_path).text


def test_an_incomplete_run_says_so(tmp_path):
    run = write_run(tmp_path / "run", planted(hybrid_curves(6)), finish=False)
    text = page_of(run, tmp_path).text
    assert "This run is not complete: 8 of 8 prompts are in it" in text
    assert "does not hold the texts of its token ids; continue it with resume=True and make the report again." in text


def test_a_complete_run_without_texts_is_to_be_traced_again(tmp_path):
    text = page_of(write_run(tmp_path / "run", planted(hybrid_curves(6))), tmp_path).text
    assert (
        "does not hold the texts of its token ids; trace it again with this version and make the report again." in text
    )


def test_few_layers_have_no_phases(tmp_path):
    run = write_run(tmp_path / "run", planted(hybrid_curves(6)))
    assert "No phases: 6 layers are too few" in page_of(run, tmp_path).text


def test_layers_that_hide_a_phase_are_named(tmp_path, capsys):
    """Every sixth layer writes and turns more than the last, on the page and at the end of a trace."""
    made = hybrid_curves(40)
    made["norm_ratio"][5::6], made["io_cosine"][5::6] = 2.0, 0.3
    run = write_run(tmp_path / "run", planted(made))
    said = "ayers 6, 12, 18, 24, 30, 36 stand out of the middle and hide a phase"
    assert f"L{said}" in page_of(run, tmp_path).text
    run.manifest["totals"] |= {"prompts": 8, "positions": 320, "seconds": 1, "non_finite_prompts": 0}
    print_summary(run)
    printed = capsys.readouterr().out
    assert f"l{said}" in printed
    assert "III" in printed.partition("stand out")[0], "the table is above"


def test_a_single_layer_has_an_explorer_and_no_statistics(tmp_path):
    run = write_run(tmp_path / "run", {name: {"entropy": np.ones((3, 1))} for name in "abc"})
    page = page_of(run, tmp_path)
    assert "The model has a single layer" in page.text
    assert "No Figure 4" in page.text
    assert len(page.all("img")) == 1
    assert json.loads(page.all("script")[0].text)["n_layers"] == 1


def test_states_that_are_not_finite_are_left_out_of_the_numbers_only(tmp_path):
    prompts = planted(hybrid_curves(10), n_prompts=3)
    prompts["broken"] = {"entropy": np.full((4, 10), np.nan), "norm_ratio": np.full((4, 10), np.inf)}
    run = write_run(tmp_path / "some", prompts, finish_reasons={"broken": "non_finite"})
    page = page_of(run, tmp_path)
    assert "leave out 1 prompt with NaN or infinite states" in page.text
    assert "broken" in [prompt["id"] for prompt in json.loads(page.all("script")[0].text)["prompts"]]
    run = write_run(tmp_path / "all", {"broken": prompts["broken"]}, finish_reasons={"broken": "non_finite"})
    page = page_of(run, tmp_path)
    assert "No statistics: every prompt of" in page.text
    assert page.text.count("No Figure") == 2
    assert not page.all("img")


def test_given_texts_have_a_report_too(tmp_path):
    prompts = planted(hybrid_curves(10))
    for columns in prompts.values():
        columns["is_generated"] = np.zeros(40, dtype=bool)
    page = page_of(write_run(tmp_path / "run", prompts), tmp_path)
    assert "nothing generated: the texts were given" in page.text
    assert "No statistics of generated tokens: " in page.text
    assert "Phases of the layers" in page.text


def test_what_cannot_be_reported_is_one_sentence(tmp_path):
    run = write_run(tmp_path / "run", planted(hybrid_curves(6)))
    empty = write_run(tmp_path / "empty", {"none": {"entropy": np.zeros((0, 4))}})
    with refused(RunError, problem="complete prompt", advice="resume=True"):
        write_report(empty, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
    with refused(OptionError, "out"):
        write_report(run, tmp_path)


def test_the_command_writes_into_the_run_or_where_told(run, tmp_path, cli):
    assert cli("report", run.path) == (0, f"{run.path / 'report.html'}\n", "")
    told = tmp_path / "page.html"
    assert cli("report", run.path, "--out", told) == (0, f"{told}\n", "")
    # the same run gives the same bytes
    assert (run.path / "report.html").read_bytes() == told.read_bytes()
    assert len(open_run(run.path).tokens) == 160  # the run is still one
    code, out, err = cli("report", tmp_path / "nowhere")
    assert (code, out) == (2, "")
    assert "no run" in err
    assert str(tmp_path / "nowhere") in err


def content(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    "name", ["manifest.json", "prompts.parquet", "tokens/part-00000.parquet", "page.html", "tokens/report.html"]
)
def test_a_page_replaces_no_part_of_a_run(run, tmp_path, cli, name):
    other = write_run(tmp_path / "other", planted(hybrid_curves(6)), finish=False)
    (other.path / "manifest.json").write_text("damaged")
    for path in (run.path / name, other.path / name, other.path / "report.html"):
        before = content(tmp_path)
        with refused(OptionError, "out", path):
            run.report(path)
        code, out, err = cli("report", run.path, "--out", path)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"--out {path}" in err
        assert content(tmp_path) == before


def test_a_page_replaces_a_page_and_no_other_file(run, tmp_path, monkeypatch):
    page, notes, link = tmp_path / "page.html", tmp_path / "notes.html", run.path / "report.html"
    run.report(page)
    first = page.read_bytes()
    run.report(page)
    assert page.read_bytes() == first
    notes.write_text("mine")
    link.symlink_to(run.path / "manifest.json")
    before = content(tmp_path)
    for path in (notes, link, tmp_path / "page.txt", tmp_path / "page", tmp_path / "nowhere" / "page.html"):
        with refused(OptionError, "out", path):
            run.report(path)
    assert content(tmp_path) == before
    assert not (tmp_path / "nowhere").exists()
    link.unlink()
    monkeypatch.chdir(run.path)
    assert open_run(".").report("report.html").exists()


def test_the_command_says_that_a_run_is_not_complete(tmp_path, cli):
    half = write_run(tmp_path / "half", planted(hybrid_curves(6)), finish=False)
    code, out, err = cli("report", half.path)
    assert (code, out) == (0, f"{half.path / 'report.html'}\n")
    assert str(half.path) in err
    assert "8 of 8" in err


def test_it_needs_no_torch():
    assert first_with_torch("layerlens.report") == ""


def test_fifty_prompts_of_512_tokens_stay_small(tmp_path):
    random = np.random.default_rng(0)
    n_layers, shape = 32, (512, 32)
    prompts = {}
    for index in range(50):
        last = random.zipf(1.3, 512) % 49152
        agree = np.arange(1, n_layers + 1) > random.integers(4, 32, 512)[:, None]
        early = random.zipf(1.2, shape) % 49152
        prompts[f"p{index}"] = {
            "entropy": random.gamma(1.0, 2.0, shape),
            "norm_ratio": random.lognormal(-1, 0.5, shape),
            "io_cosine": random.uniform(0.5, 1, shape),
            "top_token_id": np.where(agree, last[:, None], early).astype(np.int32),
        }
    words = {token_id: f" word{token_id}" for token_id in range(49152)}
    run = write_run(tmp_path / "run", prompts, words=words)
    path = write_report(open_run(run.path), tmp_path / "page.html")
    data = json.loads(Page(path.read_text(encoding="utf-8")).all("script")[0].text)
    assert len(data["prompts"]) == 50
    assert data["steps"] >= 127
    assert path.stat().st_size < 5_000_000


def test_it_says_through_which_lens_layers_were_read(tmp_path):
    path = write_run(tmp_path / "run", planted(hybrid_curves(6), n_prompts=1)).path / "manifest.json"
    lens = {"kind": "linear", "source": "a/lens.safetensors", "sha256": "0" * 64}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lens": lens}))
    texts = page_of(open_run(path.parent), tmp_path).texts
    assert texts[texts.index("Lens") + 1] == "linear, a/lens.safetensors"


def test_two_runs_are_told_apart_by_what_they_differ_in(tmp_path):
    def run(name, **manifest):
        path = write_run(tmp_path / name, planted(hybrid_curves(6), n_prompts=1)).path / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | manifest))
        return open_run(path.parent)

    last = run("a")
    narrow = run("b", strategy={"name": "valley", "window": 5, "p": 1.0})
    wide = run("c", strategy={"name": "valley", "window": 10, "p": 1.0}, lens={"kind": "logit"})
    linear = run("d", lens={"kind": "linear", "source": "x", "sha256": "0"})
    assert labels(last, narrow) == ["a: made up, last", "b: made up, valley"]
    assert labels(narrow, wide) == ["b: made up, valley, window 5", "c: made up, valley, window 10"]
    assert labels(last, linear) == ["a: made up, last, logit lens", "d: made up, last, linear lens"]
