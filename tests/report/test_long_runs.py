"""A page of a run reads the states of the prompts that it shows, and of no others."""

import numpy as np

import layerlens as ll
from layerlens.plots.layer_grid import lens_grid_table
from layerlens.records import store
from layerlens.report.beside import pack_beside
from layerlens.report.packing import pack
from tests.conftest import tiny


def traced(tmp_path, name="run", **options):
    texts = [f"{number} " * (number + 1) for number in range(8)]
    few = {"max_new_tokens": 4, "batch_size": 2, "positions": "all", "progress": False}
    return ll.trace(tiny("llama"), texts, out=tmp_path / name, **few, **options)


def watched(monkeypatch):
    """The parts of which states are read."""
    read, own = [], store.read_layers

    def read_layers(folder, columns, n_layers, parts=None):
        found = own(folder, columns, n_layers, parts)
        read.extend(parts or store.token_parts(folder))
        return found

    monkeypatch.setattr(store, "read_layers", read_layers)
    return read


def test_a_prompt_is_packed_as_it_is_from_the_whole_run(tmp_path, monkeypatch):
    run = traced(tmp_path)
    ids = run.prompts["prompt_id"].tolist()
    whole = pack(run)
    read = watched(monkeypatch)
    part = pack(ll.open_run(run.path), [ids[5]])
    assert {path.name for path in read} == {"part-00002.parquet"}
    alone = part["prompts"][0]
    same = next(one for one in whole["prompts"] if one["id"] == ids[5])
    assert (alone["n_tokens"], alone["n_left_out"], alone["finish"]) == (
        same["n_tokens"],
        same["n_left_out"],
        same["finish"],
    )
    for name in ("position", "is_generated", "valley_layer", "selected_layer"):
        assert alone["columns"][name] == same["columns"][name]
    assert part["prompts_left_out"] == 0


def test_prompts_for_which_there_is_no_room_are_counted_and_not_read(tmp_path, monkeypatch):
    run = ll.open_run(traced(tmp_path).path)
    read = watched(monkeypatch)
    packed = pack(run, budget=800)
    assert len(packed["prompts"]) + packed["prompts_left_out"] == 8
    assert packed["prompts_left_out"] > 0
    assert "part-00003.parquet" not in {path.name for path in read}


def test_lengths_and_generated_positions_are_those_of_the_rows(tmp_path):
    run = ll.open_run(traced(tmp_path).path)
    assert run.lengths == run.positions.groupby("prompt_id", sort=False).size().to_dict()
    assert list(run.lengths) == run.positions["prompt_id"].drop_duplicates().tolist()
    assert run.n_generated == int(run.positions["is_generated"].sum()) > 0
    narrow = run.of_prompts([run.prompts["prompt_id"][3]])
    assert set(narrow.lengths) == set(run.prompts["prompt_id"][2:4])
    np.testing.assert_array_equal(
        narrow.layers("entropy"),
        run.layers("entropy")[run.positions["prompt_id"].isin(run.prompts["prompt_id"][2:4]).to_numpy()],
    )
    assert run.of_prompts(run.prompts["prompt_id"]) is run


def test_two_runs_beside_each_other_read_what_both_show(tmp_path, monkeypatch):
    one = ll.open_run(traced(tmp_path, "one").path)
    other = ll.open_run(traced(tmp_path, "other", strategy=ll.Valley(window=3)).path)
    read = watched(monkeypatch)
    name = one.prompts["prompt_id"][0]
    packed = pack_beside(one, other, [name])
    assert [prompt["id"] for prompt in packed["prompts"]] == [name]
    assert {path.name for path in read} == {"part-00000.parquet"}


def test_a_grid_of_layers_reads_the_prompt_that_it_shows(tmp_path, monkeypatch):
    run = traced(tmp_path)
    name = run.prompts["prompt_id"][6]
    run.layers("entropy")  # so that the whole run is read already
    run.layers("top_token_id")
    whole = lens_grid_table(run, name)
    read = watched(monkeypatch)
    part = lens_grid_table(ll.open_run(run.path), name)
    assert {path.name for path in read} == {"part-00003.parquet"}
    assert part.equals(whole)
    rows = run.positions["prompt_id"] == name
    entropy = run.layers("entropy")[rows.to_numpy()]
    drawn = part[part["layer"] == run.n_layers]
    np.testing.assert_array_equal(drawn["value"], entropy[drawn["place"] - 1, -1])
