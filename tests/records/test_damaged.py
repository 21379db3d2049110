"""A table that is damaged is set aside and made again; a column that nobody declared is said to be unknown."""

import os
import random

import pandas as pd
import pyarrow.parquet as pq
import pytest

import layerlens as ll
from layerlens.analysis.ablation import ablation_table
from layerlens.records import all_token_columns, files, store
from tests.needs_inspect import needs_inspect
from tests.refusals import refused

FEW = {"max_new_tokens": 3, "progress": False, "batch_size": 1}


def cut(path):
    """Half of the file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scribbled(path):
    """A file whose end is whole and whose pages are not."""
    content = bytearray(path.read_bytes())
    content[4 : len(content) // 3] = b"x" * (len(content) // 3 - 4)
    path.write_bytes(content)


def narrowed(path):
    """A table that lacks a column."""
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(table.column_names[-1]), path)


def rows(run):
    """Every row but its wall time."""
    return run.tokens.to_dict("list"), run.prompts.drop(columns="seconds").to_dict("list")


@pytest.mark.parametrize("damage", [cut, scribbled, narrowed])
@pytest.mark.parametrize("name", ["tokens/part-00001.parquet", "prompts.parquet"])
def test_resume_makes_a_damaged_table_again_and_loses_nothing(tiny_llama, tmp_path, name, damage):
    out = tmp_path / "run"
    whole = ll.trace(tiny_llama, ["a", "b", "c"], out=out, **FEW)
    expected = str(rows(whole))
    untouched = (out / "tokens" / "part-00000.parquet").read_bytes()
    damage(out / name)
    damaged = (out / name).read_bytes()
    with refused(ll.RunError, given=out / name, advice="resume=True"):
        rows(ll.open_run(out))
    again = ll.trace(tiny_llama, ["a", "b", "c"], out=out, resume=True, **FEW)
    assert str(rows(again)) == expected
    assert again.is_complete
    assert (out / "tokens" / "part-00000.parquet").read_bytes() == untouched
    assert (out / "damaged" / name.replace("/", "-")).read_bytes() == damaged


def test_a_flipped_bit_is_never_another_number(tiny_llama, tmp_path):
    """Without checksums, one flip of seven gave other values without an error."""
    ll.trace(tiny_llama, ["a", "bc"], out=tmp_path / "run", kl=True, **FEW)
    part = tmp_path / "run" / "tokens" / "part-00001.parquet"
    schema, whole, chance = pq.read_schema(part), part.read_bytes(), random.Random(0)
    expected = str(files.read_table(part, schema).to_pydict())
    found = []
    for _ in range(400):
        content = bytearray(whole)
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        part.write_bytes(content)
        try:
            found.append(str(files.read_table(part, schema).to_pydict()))
        except files.DamagedFile:
            continue
    assert 40 < len(found) < 200
    assert set(found) == {expected}


@needs_inspect
@pytest.mark.parametrize("damage", [cut, scribbled, narrowed])
def test_an_ablation_makes_a_damaged_table_of_answers_again_from_its_logs(tiny_llama, tmp_path, damage):
    out = tmp_path / "a"
    few = {"max_new_tokens": 3, "arms": ["valley"], "p": [1.0], "limit": 2}
    expected = ll.ablate(tiny_llama, ["sample"], out=out, **few)
    logs = {path: path.read_bytes() for path in (out / "logs").iterdir()}
    damage(out / "answers.parquet")
    with pytest.raises(ll.RunError) as error:
        ablation_table(out)
    assert error.value.given == out / "answers.parquet"
    assert "repeat the command" in error.value.advice
    assert "resume" not in error.value.advice, "which is no option of what wrote it"
    assert ll.ablate(tiny_llama, ["sample"], out=out, **few).equals(expected)
    assert {path: path.read_bytes() for path in (out / "logs").iterdir()} == logs


@needs_inspect
def test_an_ablation_is_continued_past_a_damaged_log(tiny_llama, tmp_path):
    out = tmp_path / "a"
    few = {"max_new_tokens": 3, "arms": ["valley"], "p": [1.0], "limit": 2}
    expected = ll.ablate(tiny_llama, ["sample"], out=out, **few)
    cut(min((out / "logs").glob("*.eval")))
    assert ll.ablate(tiny_llama, ["sample"], out=out, **few).equals(expected)


def test_a_column_that_is_none_is_said_with_those_there_are(tiny_llama, tmp_path):
    run = ll.trace(tiny_llama, ["a"], out=tmp_path / "run", **FEW)
    for ask in (
        lambda name: run.layers(name),
        lambda name: run.read_layers("entropy", name),
        lambda name: store.read_tokens_table(run.path, ["position", name]),
    ):
        known = ", ".join(column.name for column in all_token_columns())
        with refused(ll.OptionError, "column", "loss", advice=known):
            ask("loss")
        with refused(ll.OptionError, "column", "entrpy", advice="did you mean entropy?"):
            ask("entrpy")
    with refused(ll.OptionError, "column", "position", advice="entropy"):
        run.layers("position")
    with refused(ll.RunError, given=run.path, advice="kl=True"):
        run.layers("kl_last_to_layer")


def test_a_part_that_is_damaged_is_named_where_its_rows_are_counted(tiny_llama, tmp_path):
    run = ll.trace(tiny_llama, ["a", "b"], out=tmp_path / "run", **FEW)
    whole = store.token_groups(run.path, 1)
    assert [len(group) for group in whole] == [1, 1]
    cut(whole[1][0])
    with pytest.raises(ll.RunError) as error:
        store.token_groups(run.path, 1)
    assert str(whole[1][0]) in str(error.value)


def test_a_folder_whose_name_is_not_utf8_holds_a_run_like_any_other(tiny_llama, tmp_path):
    out = tmp_path / os.fsdecode(b"caf\xe9")
    run = ll.trace(tiny_llama, ["a", "b"], out=out, **FEW)
    again = ll.open_run(out)
    plain = ll.trace(tiny_llama, ["a", "b"], out=tmp_path / "cafe", **FEW)
    for found in (run, again):
        pd.testing.assert_frame_equal(found.tokens, plain.tokens)
        pd.testing.assert_frame_equal(found.by_layer(), plain.by_layer())
