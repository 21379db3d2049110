"""Every family of transformers against the table in the documentation, and that a mistake shows as a failure.

After an upgrade of transformers, put what `layerlens models --check --markdown` prints under the last heading of
docs/models.md. LAYERLENS_ALL_FAMILIES=1 tries all families, which takes minutes; without it, one of each kind.
"""

import os
import re
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig

import layerlens as ll
from layerlens.decode import scan
from layerlens.decode.forward import Forward
from layerlens.decode.speculative import loop
from layerlens.lens import tiled
from layerlens.models import adapter, tiny_model, tiny_tokenizer
from layerlens.support.coverage import (
    STEPS,
    VERDICTS,
    as_table,
    check_families,
    check_family,
)
from layerlens.support.families import families, picture_families
from layerlens.tracing import engines, meter, tracer
from tests.refusals import refused

ROOT = Path(__file__).resolve().parents[2]
PROSE, TABLE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8").split("## Every family\n")
VERSION = re.search(r"Made with transformers (\S+) by", TABLE)[1]

KINDS = {
    "dense": "llama",
    "parallel": "cohere",
    "post-norm": "olmo2",
    "capped": "gemma2",
    "scaled": "granite",
    "hybrid": "qwen3_next",
    "MoE": "mixtral",
    "state-space": "mamba2",
    "multimodal wrapper": "gemma3",
    "decoder of a translator": "bart",
    "padding read as text": "rwkv",
    "several streams": "deepseek_v4",
    "encoder": "bert",
}
ALL = "LAYERLENS_ALL_FAMILIES" in os.environ

of_this_version = pytest.mark.skipif(
    transformers.__version__ != VERSION,
    reason=f"the table is of transformers {VERSION}, installed is {transformers.__version__}",
)


def rows(lines):
    """Of a Markdown table the cells after the name, by name."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| `")]
    return {name.strip("`"): others for name, *others in cells}


def comparable(row):
    """Without the seconds, and without the size of a mismatch, which differs from machine to machine."""
    return [re.sub(r"\d\.\de[+-]\d\d", "#", cell) for cell in row[:-1]]


ROWS = rows(TABLE.splitlines())
VERDICT_OF = {name: row[0].partition(":")[0] for name, row in ROWS.items()}


@pytest.mark.parametrize("name", families() if ALL else [name for name in KINDS.values() if name in families()])
def test_a_family_is_what_the_table_says(name):
    found = check_family(name)
    assert found.verdict != "fails", found.reason
    assert (found.passed == tuple(STEPS)) == (found.verdict == "works")
    if transformers.__version__ == VERSION:
        assert comparable(rows(as_table([found]))[name]) == comparable(ROWS[name])


@of_this_version
def test_the_table_lists_every_family_of_transformers():
    assert list(ROWS) == families()


def test_nothing_fails_and_the_sums_are_right():
    assert set(VERDICT_OF.values()) <= set(VERDICTS) - {"fails"}
    counts = {verdict: list(VERDICT_OF.values()).count(verdict) for verdict in VERDICTS}
    said = f"{len(ROWS)} families: {counts['works']} work, {counts['refused']} refused, {counts['not tried']} not tried"
    assert TABLE.rstrip().endswith(f"\n{said}, 0 fail.")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    version = VERSION.rpartition(".")[0]
    assert f" {counts['works']} of the {len(ROWS)} causal families of transformers {version} pass" in readme


@pytest.mark.parametrize(
    ("verdict", "heading"), [("refused", "What is refused, and why"), ("not tried", "What is not tried")]
)
def test_what_does_not_work_has_its_reason_in_the_text(verdict, heading):
    section = PROSE.split(f"## {heading}\n")[1].split("\n## ")[0]
    named = set(re.findall(r"`([^`]+)`", section)) & set(ROWS)
    of_verdict = {name for name, found in VERDICT_OF.items() if found == verdict}
    assert of_verdict <= named
    assert {VERDICT_OF[name] for name in named - of_verdict} <= {"refused"}, "the relatives of what is not tried"


def named_in_the_paragraph(beginning):
    return set(re.findall(r"`([^`]+)`", PROSE.split(f"**{beginning}")[1].split("\n\n")[0])) & set(ROWS)


@of_this_version
def test_the_halves_of_translators_are_those_whose_configs_are_of_the_whole():
    working = {name for name, verdict in VERDICT_OF.items() if verdict == "works"}
    halves = {name for name in working if AutoConfig.for_model(name).is_encoder_decoder}
    assert named_in_the_paragraph("Halves of translators") == halves


@of_this_version
@pytest.mark.parametrize("name", sorted(named_in_the_paragraph("Every token sees")))
def test_an_encoder_that_is_made_a_decoder_loads_if_the_text_says_so(name):
    try:
        ll.load(tiny_model(name, is_decoder=True), tokenizer=tiny_tokenizer())
        loads = True
    except ll.ModelError:
        loads = False
    assert loads == (name in named_in_the_paragraph("Decoders among the encoders"))


def test_prophetnet_is_not_causal_for_the_reason_that_the_text_gives():
    """Without the relative positions of its predicting streams, no logit depends on a later token."""
    hf = tiny_model("prophetnet")
    ids = torch.arange(5, 12).repeat(2, 1)
    ids[1, -1] = 50
    differences = []
    for weight in (1.0, 0.0):
        for module in hf.modules():
            if hasattr(module, "relative_pos_embeddings"):
                module.relative_pos_embeddings.weight.data.mul_(weight)
        with torch.no_grad():
            one, other = hf(input_ids=ids, use_cache=False).logits[:, :-1]
        differences.append(float((one - other).abs().max()))
    assert differences[0] > 1e-2
    assert differences[1] < 1e-5


def test_models_for_images_and_text_are_known_by_name():
    assert not set(picture_families()) & set(families())
    assert check_family("mistral3").verdict == "works"


def test_an_unknown_family_is_refused_before_anything_is_checked():
    with refused(ll.OptionError, "names", "lama", advice="llama"):
        check_families(["llama", "lama"])
    with refused(ll.OptionError, "names", "#", advice="afmoe"):
        check_family("#")


def test_a_table_has_a_row_for_whatever_is_found(monkeypatch):
    """A bar in a reason does not end its cell."""
    monkeypatch.setattr(adapter, "layer_kinds", lambda *_: {}["a | b"])
    (row,) = rows(as_table([check_family("llama")])).values()
    assert row[:3] == ["fails: at load: KeyError: 'a / b'", "", ""]


def test_it_fails_where_the_model_cannot_be_read(monkeypatch):
    """A head that is not understood is no reason to refuse a family."""
    monkeypatch.setattr(adapter, "_number", lambda *_: None)
    found = check_family("granite")
    assert (found.verdict, found.passed) == ("fails", ())
    assert found.reason.startswith("at load: UnknownHead: ")
    assert "failed the readout check" in found.reason


def test_it_fails_where_generating_breaks(monkeypatch):
    monkeypatch.setattr(engines, "generate", lambda *_: 1 / 0)
    found = check_family("llama")
    assert (found.verdict, found.passed) == ("fails", ("load",))
    assert found.reason == "at generate: ZeroDivisionError: division by zero"
    assert (found.kinds, found.parts) == ("4 full", True)


def test_it_fails_where_a_replay_differs(monkeypatch):
    right = engines.replay
    from_the_start = lambda model, texts, firsts, *others: right(model, texts, [0 for _ in firsts], *others)  # noqa: E731
    monkeypatch.setattr(engines, "replay", from_the_start)
    assert fails_at("replay", "llama").startswith("generating and replaying record (")
    wrong = lambda model, texts, *others: right(model, [text[::-1] for text in texts], *others)  # noqa: E731
    monkeypatch.setattr(engines, "replay", wrong)
    assert fails_at("replay", "llama").startswith("generating and replaying differ by ")


@pytest.mark.parametrize("family", ["llama", "mamba2", "gemma3"])
def test_it_fails_where_layers_are_taken_for_the_next(monkeypatch, family):
    """In both modes, so that they agree."""
    right = meter.Meter.on_block

    def shifted(self, index, *seen):
        right(self, (index + 1) % len(self._layers), *seen)

    monkeypatch.setattr(meter.Meter, "on_block", shifted)
    assert fails_at("readout", family).startswith("a plain reading and the trace differ by ")


def test_it_fails_where_readouts_lack_the_final_norm(monkeypatch):
    right = tiled.read
    monkeypatch.setattr(tiled, "read", lambda states, *more, **others: right(states * 1.05 + 0.1, *more, **others))
    assert fails_at("readout", "olmo2").endswith("in entropy")


@pytest.mark.parametrize("family", ["llama", "mixtral"])
@pytest.mark.parametrize("by", [-1, 1])
def test_it_fails_where_the_walk_is_off_by_one(monkeypatch, family, by):
    right = scan.n_steps_back
    monkeypatch.setattr(scan, "n_steps_back", lambda values: min(max(right(values) + by, 0), len(values) - 1))
    assert " where a plain walk finds " in fails_at("valley", family)


def test_it_fails_where_padding_is_let_through(monkeypatch):
    monkeypatch.setattr(tracer, "refuse_ignored_padding", lambda _: None)
    assert fails_at("padding", "bart").startswith("generating one by one and together differ by ")


@pytest.mark.parametrize(
    ("family", "refused_because", "kinds"),
    [
        ("llama", "", ("trees", "parts")),
        ("gemma2", "", ("trees", "parts")),
        ("opt", "", ("trees",)),
        ("mamba", "recurrence", ()),
        ("qwen3_next", "recurrence", ()),
    ],
)
def test_it_says_whether_and_how_a_family_drafts(family, refused_because, kinds):
    found = check_family(family)
    assert (found.verdict, found.passed[-1]) == ("works", "drafts")
    assert refused_because in found.drafts
    assert bool(found.drafts) == bool(refused_because)
    assert found.draft_kinds == kinds
    (row,) = rows(as_table([found])).values()
    cell = dict(zip(("verdict", *STEPS), row, strict=False))["drafts"]
    assert cell == (f"refused: {found.drafts}" if found.drafts else ", ".join(("✓", *kinds)))


def lasting(is_broken):
    """As `skipping`, but the last block stays without effect afterwards, where the set is one that breaks it."""
    right = loop.skipping

    @contextmanager
    def skipping(model, skips):
        with right(model, skips):
            yield
        if is_broken(skips):
            passed_by = lambda _, args, output: args[0] if torch.is_tensor(output) else (args[0], *output[1:])  # noqa: E731
            model.blocks[-1].register_forward_hook(passed_by)

    return skipping


@pytest.mark.parametrize("parts_alone", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_fails_where_blocks_are_left_out_outside_of_drafts_too(monkeypatch, family, parts_alone):
    monkeypatch.setattr(loop, "skipping", lasting(lambda skips: not (parts_alone and skips.is_of_blocks)))
    reason = fails_at("drafts", family)
    assert reason.startswith("drafts without ")
    assert ("attention" in reason) == parts_alone


def test_it_fails_where_rejected_tokens_stay_in_the_cache(monkeypatch):
    right = Forward.retract
    keep_all = lambda self, n_read, kept: right(self, n_read, [range(n_read) for _ in kept])  # noqa: E731
    monkeypatch.setattr(Forward, "retract", keep_all)
    assert fails_at("drafts", "llama").startswith("drafts without ")


def test_it_fails_where_drafts_break(monkeypatch):
    """A refusal is one only where it says that the family cannot draft."""
    monkeypatch.setattr(loop, "skipping", lambda *_: 1 / 0)
    assert fails_at("drafts", "llama").startswith("ZeroDivisionError: ")

    def refuses(*_):
        raise ll.ModelError("another thing is wrong", "do something", option="skipped")

    monkeypatch.setattr(loop, "skipping", refuses)
    assert fails_at("drafts", "llama").startswith("ModelError: another thing is wrong")


def fails_at(step, family):
    """What is said, after the step is."""
    found = check_family(family)
    assert found.verdict == "fails"
    assert list(found.passed) == list(STEPS)[: list(STEPS).index(step)]
    begins, _, reason = found.reason.partition(": ")
    assert begins == f"at {step}"
    return reason
