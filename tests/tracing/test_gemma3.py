"""A second real model: every recorded number against a plain NumPy Gemma 3 that reads the file itself."""

import numpy as np
import pytest

from layerlens.models.locate import GEMMA3, built_in_file
from tests.conftest import needs_gemma3
from tests.lens.test_coarse import within_a_hundredth_of_a_nat
from tests.thorough import some, thorough
from tests.tracing.plain_gemma3 import Gemma3, Pieces, read

TEXTS = ["A ferry carries 38 cars", "Water boils at"]
WINDOW = 512
LONG = "one two three four five six seven eight nine ten eleven twelve " * 50


@pytest.fixture(scope="module")
def model():
    import layerlens as ll

    needs_gemma3()
    return ll.load(GEMMA3)


@pytest.fixture(scope="module")
def file(model):
    return read(built_in_file(GEMMA3))


@pytest.fixture(scope="module")
def plain(file):
    return Gemma3(file)


@pytest.fixture(scope="module")
def pieces(file):
    return Pieces(file)


@pytest.fixture(scope="module")
def runs(model, tmp_path_factory):
    import layerlens as ll

    def trace(**options):
        out = tmp_path_factory.mktemp("gemma3") / "run"
        return ll.trace(model, TEXTS, out=out, max_new_tokens=2, progress=False, **options)

    return {"generate": trace(batch_size=2), "replay": trace(mode="replay", positions="all", batch_size=2)}


def numbers(plain: Gemma3, ids: list[int], places: list[int]) -> dict[str, np.ndarray]:
    """Per-layer numbers of some positions, from whole float32 logits: [positions, 18] each."""
    streams, attentions = plain.states(ids)
    columns = {name: [] for name in ("norm_ratio", "io_cosine", "attn_ratio", "mlp_ratio", "entropy", "top_token_id")}
    size = lambda states: np.linalg.norm(states.astype(np.float64), axis=1)  # noqa: E731
    for layer, attention in enumerate(attentions):
        before, after, part = streams[layer][places], streams[layer + 1][places], attention[places]
        logits = plain.logits(after).astype(np.float64)
        log_probs = logits - logits.max(axis=1, keepdims=True)
        log_probs -= np.log(np.exp(log_probs).sum(axis=1, keepdims=True))
        columns["norm_ratio"].append(size(after - before) / size(before))
        columns["io_cosine"].append((before * after).sum(axis=1, dtype=np.float64) / size(before) / size(after))
        columns["attn_ratio"].append(size(part) / size(before))
        columns["mlp_ratio"].append(size(after - before - part) / size(before + part))
        columns["entropy"].append(-(np.exp(log_probs) * log_probs).sum(axis=1))
        columns["top_token_id"].append(logits.argmax(axis=1))
    return {name: np.stack(values, 1) for name, values in columns.items()}


def agree(run, plain: Gemma3, ids: list[int], rows) -> None:
    places = rows["position"].tolist()
    expected = numbers(plain, ids, places)
    found = {name: run.layers(name)[rows.index] for name in expected}
    assert found["entropy"].shape == (len(places), 18)
    assert np.abs(found["entropy"] - expected["entropy"]).max() <= 2e-3
    assert np.abs(found["io_cosine"] - expected["io_cosine"]).max() <= 1e-4
    for name in ("norm_ratio", "attn_ratio", "mlp_ratio"):
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-3, err_msg=name)
    assert (found["top_token_id"] == expected["top_token_id"]).all()


@pytest.mark.parametrize("how", some(["generate", "replay"], 1))
def test_every_recorded_number_agrees_with_the_file_in_plain_numpy(runs, plain, pieces, how):
    run = runs[how]
    assert run.manifest["options"]["chat_template"] is False
    for prompt_id, rows in run.positions.groupby("prompt_id"):
        emitted = [int(token) for token in rows.loc[rows["is_generated"], "next_token_id"]]
        prompt = [2, *pieces.encode(TEXTS[int(prompt_id)])]
        first = 0 if how == "replay" else len(prompt) - 1
        assert rows["position"].tolist() == list(range(first, len(prompt) + 1))
        agree(run, plain, [*prompt, *emitted[:-1]], rows)
        generated = rows.index[rows["is_generated"]]
        assert run.layers("top_token_id")[generated][:, -1].tolist() == emitted


@thorough
def test_a_sliding_layer_forgets_the_first_token_where_the_window_ends(model, plain, pieces, tmp_path):
    """The last position that sees the token on which attention is parked, and the first that no longer does."""
    import layerlens as ll

    prompt = [2, *pieces.encode(LONG)][:WINDOW]
    text = model.tokenizer.decode(prompt[1:])
    run = ll.trace(model, [text], out=tmp_path / "run", max_new_tokens=2, progress=False)
    assert run.positions["position"].tolist() == [WINDOW - 1, WINDOW]
    ids = [*prompt, int(run.positions["next_token_id"].iloc[0])]
    agree(run, plain, ids, run.positions)


def test_layers_and_weights_are_the_files(model, plain):
    assert model.layer_kinds == (["sliding"] * 5 + ["full"]) * 3
    assert model.hf.lm_head.weight is model.hf.model.embed_tokens.weight
    assert model.tokenizer.chat_template is None
    layer = model.hf.model.layers[7]
    for name, weight, added in (
        ("token_embd.weight", model.hf.model.embed_tokens.weight, 0),
        ("blk.7.ffn_down.weight", layer.mlp.down_proj.weight, 0),
        ("blk.7.attn_q_norm.weight", layer.self_attn.q_norm.weight, 1),
        ("output_norm.weight", model.hf.model.norm.weight, 1),
    ):
        some = slice(None, None, max(1, len(weight) // 4096))
        expected = plain.tensor(name)[some] - np.float32(added)
        np.testing.assert_array_equal(weight.detach().numpy()[some], expected, err_msg=name)


@thorough
def test_readings_in_bfloat16_are_within_a_hundredth_of_a_nat(model):
    within_a_hundredth_of_a_nat(model)


@pytest.mark.parametrize(
    "text",
    [
        *TEXTS,
        "  two spaces, and a  few   more  ",
        "12,345 + 3.14\t=\n\n\nthree lines",
        "naïve café, Straße ≈ Ω, 日本語, Привет",
        "😀 👩‍👩‍👧 ᚠᛇ \u200b\u00a0",
        "def f(x):\n    return x ** 2  # <b>not</b> <eos>\n",
    ],
)
def test_texts_are_cut_as_the_files_scores_say_and_come_back(model, pieces, text):
    ids = model.tokenizer(text).input_ids
    assert ids == [2, *pieces.encode(text)]
    assert model.tokenizer.decode(ids[1:]) == text
