"""Text, tokens and records agree between the drop-in, `ll.generate`, `ll.trace` and the command line."""

import pytest
import torch

import layerlens as ll
import layerlens.cli
from tests.conftest import tiny
from tests.refusals import refused

TEXTS = ["Hello there, you", "a", "What is this? And that"]


@pytest.mark.parametrize("divergence", ["published", "js"])
def test_rows_that_have_ended_choose_no_layer_in_either_door(divergence):
    """DoLa takes one layer for a batch: the drop-in keeps a row that has ended as padding, the loop leaves it out."""
    model = tiny("llama", num_hidden_layers=9)
    strategy = ll.DoLa(candidates=tuple(range(9)), divergence=divergence)
    ids = torch.randint(3, 300, (3, 12), generator=torch.Generator().manual_seed(5))
    texts = [model.tokenizer.decode(row) for row in ids]
    encoded = model.tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    free = ll.generate(model, texts, strategy=strategy, max_new_tokens=24, batch_size=3)
    ended = 0
    for end in {one.token_ids[2] for one in free}:
        found = ll.generate(model, texts, strategy=strategy, max_new_tokens=24, batch_size=3, eos_token_id=end)
        with ll.decoding(model, strategy) as log:
            model.hf.generate(**encoded, max_new_tokens=24, do_sample=False, pad_token_id=0, eos_token_id=end)
        emitted = log.steps.groupby("row")["next_token_id"].apply(list).tolist()
        assert [one.token_ids for one in found] == emitted
        ended += len({len(tokens) for tokens in emitted}) > 1
    assert ended


@pytest.mark.parametrize("mode", ["generate", "replay"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_5_text", "gpt2"])
def test_a_trace_records_what_was_decoded(family, mode, run_of):
    model = tiny(family)
    strategy = ll.Valley(window=3, p=0.7)
    run = run_of(model, TEXTS, strategy=strategy, max_new_tokens=9, mode=mode, seed=5)
    for number, (text, (_, rows)) in enumerate(zip(TEXTS, run.positions.groupby("prompt_id", sort=False), strict=True)):
        ids = torch.tensor([model.tokenizer(text).input_ids])
        seed = ll.decode.loop.batch_seed(5, number)
        with ll.decoding(model, strategy, seed=seed) as log:
            model.hf.generate(input_ids=ids, max_new_tokens=9, do_sample=False, pad_token_id=0)
        steps = log.steps
        for column in ("next_token_id", "selected_layer", "position"):
            assert rows[column].tolist() == steps[column].tolist(), column
        acted = steps["selected_layer"] < model.n_layers
        assert rows.loc[acted.to_numpy(), "valley_layer"].tolist() == steps.loc[acted, "valley_layer"].tolist()
        top = run.layers("top_token_id")[rows.index]
        assert top[:, -1].tolist() == steps["last_token_id"].tolist()
        chosen = top[range(len(rows)), rows["selected_layer"] - 1]
        assert chosen.tolist() == rows["next_token_id"].tolist(), "greedy: the selected layer's top token was emitted"
    expected = {"window": 3, "p": 0.7, "shift": 0, "criterion": "shannon", "scan": "auto", "entropy_floor": 0.0}
    assert run.manifest["strategy"] == {"name": "valley", **expected}
    assert run.manifest["window"] == 3


def test_batched_and_resumed_traces_of_a_valley(run_of, tmp_path, monkeypatch):
    """The draws belong to a batch, so a run that was cut off ends with the same rows."""
    from layerlens.tracing import engines

    model = tiny("llama")
    options = {"strategy": ll.Valley(window=3, p=0.5), "max_new_tokens": 8, "temperature": 0.9, "batch_size": 2}
    whole = run_of(model, TEXTS, **options)
    right, calls = engines.generate, iter(range(9))

    def failing(*arguments):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return right(*arguments)

    monkeypatch.setattr(engines, "generate", failing)
    with pytest.raises(KeyboardInterrupt):
        ll.trace(model, TEXTS, out=tmp_path / "cut", progress=False, **options)
    monkeypatch.undo()
    resumed = ll.trace(model, TEXTS, out=tmp_path / "cut", progress=False, resume=True, **options)
    assert resumed.positions.equals(whole.positions)
    with refused(ll.RunError, given=tmp_path / "cut", problem="p 0.4"):
        ll.trace(model, TEXTS, out=tmp_path / "cut", resume=True, **options | {"strategy": ll.Valley(window=3, p=0.4)})


def test_states_that_emitted_nothing_have_the_last_layer(run_of):
    model = tiny("llama")
    run = run_of(model, TEXTS[:1], strategy=ll.Fixed(1), max_new_tokens=4, positions="all")
    generated = run.positions["is_generated"]
    assert (run.positions.loc[generated, "selected_layer"] == 3).all()
    assert (run.positions.loc[~generated, "selected_layer"] == 4).all()


def test_stop_strings_in_a_trace(run_of):
    model = tiny("llama")
    free = run_of(model, TEXTS, max_new_tokens=12, batch_size=3)
    output = free.prompts["output"].tolist()
    stop = next(letter for letter in output[0][2:] if letter.isascii() and letter.isprintable())
    for mode in ("generate", "replay"):
        stopped = run_of(model, TEXTS, max_new_tokens=12, batch_size=3, stop_strings=[stop], mode=mode)
        assert stopped.prompts["finish_reason"].tolist() == ["stop" if stop in text else "length" for text in output]
        assert stopped.prompts["output"].tolist() == [
            text[: text.index(stop) + 1] if stop in text else text for text in output
        ]
        assert len(stopped.positions) == stopped.prompts["n_generated_tokens"].sum()


@pytest.fixture
def folder(tiny_folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    return tiny_folder("llama")


def test_the_command_line_prints_the_same_text_with_its_changes_marked(cli, folder):
    model = ll.load(folder)
    found = ll.generate(model, "Hello there", strategy=ll.Valley(window=4), max_new_tokens=40)
    code, out, err = cli(
        "generate", "--model", folder, "--prompt", "Hello there", "--window", 4, "--max-new-tokens", 40
    )
    assert (code, err) == (0, "")
    changed = found.steps[found.steps["next_token_id"] != found.steps["last_token_id"]]
    assert len(changed) > 1
    assert out.count(" -> ") == len(changed) + 1  # and what the brackets mean
    assert f"valley: 40 tokens, {len(changed)} changed" in out
    for _, step in changed.iterrows():
        last, emitted = (
            model.tokenizer.decode([int(step[name])]).strip() for name in ("last_token_id", "next_token_id")
        )
        if last.isprintable() and emitted.isprintable():
            assert f"⟦{last} -> {emitted}⟧" in out


def test_texts_side_by_side(cli, folder):
    code, out, _ = cli(
        "generate", "--model", folder, "--prompt", "Hello there", "--window", 3, "--max-new-tokens", 12, "--compare"
    )
    assert code == 0
    assert "last: 12 tokens, 0 changed (0.0%), 0 from an earlier layer (0.0%), 1.0 unembeddings a token" in out
    assert "valley: 12 tokens" in out
    assert "tokens are equal" in out
    _, out, _ = cli("generate", "--model", folder, "--prompt", "Hello", "--p", 0, "--max-new-tokens", 5, "--compare")
    assert "the texts are equal" in out


def test_trace_with_a_strategy_on_the_command_line(cli, folder, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Hello there\nWhat is this?\n")
    common = ("--model", folder, "--prompts", prompts, "--max-new-tokens", 8)
    code, _, err = cli("trace", *common, "--strategy", "trough", "--window", 3, "--out", tmp_path / "valley")
    assert (code, err) == (0, "")
    opened = ll.open_run(tmp_path / "valley")
    assert opened.manifest["strategy"]["name"] == "valley"
    assert opened.manifest["strategy"]["window"] == 3
    found = ll.generate(
        ll.load(folder), ["Hello there", "What is this?"], strategy=ll.Valley(window=3), max_new_tokens=8
    )
    assert opened.prompts["output"].tolist() == [one.text for one in found]
    for one, (_, rows) in zip(found, opened.positions.groupby("prompt_id", sort=False), strict=True):
        assert rows["selected_layer"].tolist() == one.steps["selected_layer"].tolist()
