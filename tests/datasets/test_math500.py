import json

import layerlens.datasets as ld


def test_the_real_problems(real_file):
    path = real_file("math500/test.jsonl")
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    dataset = ld.dataset("math500", data_file=path)
    assert len(dataset) == 500
    assert {prompt.prompt_id: (prompt.content, prompt.reference) for prompt in dataset} == {
        row["unique_id"]: (row["problem"], row["answer"]) for row in rows
    }
    assert [prompt.content for prompt in dataset] == [row["problem"] for row in rows]


def test_the_reference_is_the_content_of_the_solution_s_box(real_file):
    path = real_file("math500/test.jsonl")
    solutions = [json.loads(line)["solution"] for line in path.read_bytes().splitlines()]
    boxed = [
        prompt.reference.replace(" ", "") in solution.replace(" ", "")
        for prompt, solution in zip(ld.dataset("math500", data_file=path), solutions, strict=True)
    ]
    assert sum(boxed) > 480, "a few solutions write the answer in another form"


def test_two_rows_with_one_id(tmp_path, refused):
    row = {"problem": "1 + 1", "answer": "2", "unique_id": "test/1"}
    path = tmp_path / "copy.json"
    path.write_text(json.dumps([row, row]))
    with refused(f"{path}, row 2", f"{path}, row 1", given="test/1"):
        ld.dataset("math500", data_file=path)
