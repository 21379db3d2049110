"""Files of data and values of options as nobody should write them: a right result, or one sentence."""

import csv
import datetime
import decimal
import io
import json
import math
import random
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

import layerlens as ll
from layerlens.errors import PromptError
from tests.hard.doors import cases, knock, result_or_sentence
from tests.needs_inspect import needs_inspect
from tests.refusals import refused

pytestmark = pytest.mark.filterwarnings("ignore")
GONE = object()
ROWS = {
    "gsm8k": {"question": "What is 1 + 1?", "answer": "It is 2.\n#### 2,000"},
    "math500": {"problem": "Add $1$ to 1.", "answer": "2", "unique_id": "test/1"},
    "gpqa": {
        **{"Record ID": "rec1", "Question": "Which?", "Correct Answer": "this"},
        **{f"Incorrect Answer {number}": f"that {number}" for number in (1, 2, 3)},
    },
}
IN_JSON = (
    *(GONE, None, True, False, 0, 5, -1, 10**30, 3.5, math.nan, math.inf, -math.inf, "", " ", "\n\t", "\u2028", "None"),
    *("nan", "007", "1e5", "\x1b[31m", "\u202e", "e\u0301", "\x00", "#### 7", "a\n#### -1,000.5 ", "#### ", "####"),
    *([], ["x"], [[]], {}, {"a": 1}, [None], ["####"], "x" * 100_000),
)
UTC, BERLIN = datetime.UTC, "Europe/Berlin"
NOON = datetime.datetime(2020, 2, 29, 12, tzinfo=UTC)
BAD_UTF8 = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"]).buffers())
IN_PARQUET = (
    *(
        pa.array([value])
        for value in (None, True, 5, 3.5, math.nan, math.inf, "", " ", "text", "#### 7", b"x", b"\xff")
    ),
    *(pa.array([NOON.date()]), pa.array([NOON.time()]), pa.array([NOON]), pa.array([datetime.timedelta(3)])),
    *(pa.array([NOON], pa.timestamp(unit, zone)) for unit in ("s", "ns") for zone in (None, "UTC", BERLIN, "+05:30")),
    pa.array([NOON], pa.timestamp("us", "Nowhere/Land")),
    *(pa.array([n], pa.int64()).cast(pa.timestamp(unit)) for n, unit in ((2**40, "s"), (2**60, "us"), (2**62, "ns"))),
    *(pa.array([2**31 - 1], pa.int32()).cast(pa.date32()), pa.array([2**40], pa.int64()).cast(pa.duration("s"))),
    *(pa.array([decimal.Decimal("1.50")]), pa.array([decimal.Decimal(10**37)], pa.decimal128(38))),
    *(pa.array([2**64 - 1], pa.uint64()), pa.array(["text"], pa.large_string()), pa.array([b"x"], pa.large_binary())),
    *(pa.array(["text"]).dictionary_encode(), pa.array([5]).dictionary_encode(), pa.array([None], pa.string())),
    *(pa.array([["x"]]), pa.array([[]], pa.list_(pa.string())), pa.array([{"a": "x"}]), pa.array([{"a": [{"b": 1}]}])),
    *(
        pa.array([[("k", "v")]], pa.map_(pa.string(), pa.string())),
        pa.nulls(1),
        BAD_UTF8,
        pa.array([b"xyz"], pa.binary(3)),
    ),
)
SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")


def written(path, rows):
    """The file, and its rows as somebody reads them who turns nothing into another type."""
    if path.suffix == ".csv":
        names = list(dict.fromkeys(name for row in rows for name in row))
        cells = [["" if (value := row.get(name, "")) is None else str(value) for name in names] for row in rows]
        text = io.StringIO(newline="")
        csv.writer(text).writerows([names, *cells])
        path.write_text(text.getvalue(), encoding="utf-8", newline="")
        return [dict(zip(names, row, strict=True)) for row in cells]
    lines = [json.dumps(row) for row in rows]
    path.write_text("[" + ",".join(lines) + "]" if path.suffix == ".json" else "\n".join(lines), encoding="utf-8")
    return rows


def expected(name, rows):
    """(id, text, reference) of every row; None where one of them lacks a text."""
    found = []
    for place, row in enumerate(rows):
        texts = [row.get(column) for column in ROWS[name]]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            return None
        if name == "gsm8k":
            number = texts[1].split("####")[-1].strip() if "####" in texts[1] else ""
            if not number:
                return None
            found.append((str(place), texts[0], number.replace(",", "")))
        elif name == "math500":
            found.append((texts[2], texts[0], texts[1]))
        else:
            found.append((texts[0], {text.strip() for text in texts[2:]}, texts[2].strip()))  # as options stand
    return found if len({one[0] for one in found}) == len(found) else None


def taken(name, prompts):
    """The same of a dataset that was read: the options of GPQA by their letters."""
    if name != "gpqa":
        return [(one.prompt_id, one.content, one.reference) for one in prompts]
    found = []
    for one in prompts:
        options = {letter: one.content.split(f"({letter}) ")[1].split("\n")[0] for letter in "ABCD"}
        found.append((one.prompt_id, set(options.values()), options[one.reference]))
    return found


def assert_read(name, path, rows, about):
    """The rows are read as they stand, or a sentence names the file."""
    right = expected(name, rows)
    prompts, said = result_or_sentence(lambda: ll.dataset(name, data_file=path))
    assert (prompts is None) == (right is None), (about, said)
    if prompts is None:
        assert str(path) in said, about
        return
    if name == "gpqa" and any(
        "\n" in text.strip() or "\u2028" in text for row in rows for text in map(str, row.values())
    ):
        return  # its options cannot be told apart by lines
    assert taken(name, prompts) == right, about


def table():
    """Every (dataset, column, value, suffix), in an order drawn once."""
    every = [
        (name, column, value, suffix)
        for name, row in ROWS.items()
        for column in (*row, "another column")
        for suffix in SUFFIXES
        for value in (IN_PARQUET if suffix == ".parquet" else IN_JSON)
    ]
    random.Random(0).shuffle(every)
    return every


def test_columns_of_data_files(tmp_path):
    """Every column with every value, in every form; the row after it and the row before it are whole."""
    tried = table()[: cases(120, 10_000)]
    for number, (name, column, value, suffix) in enumerate(tried):
        path = tmp_path / f"rows{suffix}"
        about = (number, name, column, suffix, "gone" if value is GONE else repr(value)[:200])
        whole = ROWS[name]
        if suffix == ".parquet":
            columns = {key: pa.array([text]) for key, text in whole.items()} | {column: value}
            pyarrow.parquet.write_table(pa.table(columns), path)
            try:
                texts = value.to_pylist()
            except Exception:  # as many kinds as there are types
                texts = [None] if column in whole else None
            if texts is not None:
                assert_read(name, path, [whole | {column: texts[0]}], about)
            else:  # a column that nobody asked for cannot be read
                with pytest.raises(PromptError, match="Parquet"):
                    ll.dataset(name, data_file=path)
            continue
        changed = {key: text for key, text in whole.items() if key != column} | (
            {} if value is GONE else {column: value}
        )
        key = {"math500": "unique_id", "gpqa": "Record ID"}.get(name)
        rows = [whole | ({key: f"row {place}"} if key else {}) for place in range(2)]
        rows.insert(1, changed)
        assert_read(name, path, written(path, rows), about)


CSV = {
    "a column twice": ("problem,answer,problem,unique_id\na,1,b,x\n", "problem"),
    "a cell too many": ("problem,answer,unique_id\nWhat is 1, 2?,3,x\n", "line 2"),
    "a cell too few": ("problem,answer,unique_id\nabc,3\n", "unique_id"),
    "a header alone": ("problem,answer,unique_id\n", "no rows"),
    "blank lines alone": ("problem,answer,unique_id\n\n\n", "no rows"),
    "no header": ("What is 1 + 1?,2,x\nWhat is 1 + 2?,3,y\n", "no column"),
    "a quote that does not end": ('problem,answer,unique_id\n"abc,3,x\n', "CSV"),
    "another delimiter": ("problem;answer;unique_id\nabc;3;x\n", "no column"),
    "spaces before names": ("problem, answer, unique_id\nabc,3,x\n", "no column"),
    "NUL": ("problem,answer,unique_id\n\x00,3,\n", "unique_id"),
}


@pytest.mark.parametrize("name", CSV)
def test_csv_that_can_be_misread(name, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(CSV[name][0])
    with refused(PromptError, problem=CSV[name][1]):
        ll.dataset("math500", data_file=path)


def test_csv_columns_that_are_not_asked_for(tmp_path):
    """An index without a name, and cells that are empty, as other programs write them."""
    path = tmp_path / "rows.csv"
    path.write_text(',,problem,answer,unique_id\n0,,"a, b",3,x\n1,,c,4,y\n')
    assert [one.content for one in ll.dataset("math500", data_file=path)] == ["a, b", "c"]


def test_a_key_or_a_column_that_is_there_twice(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"problem": "a", "answer": "1", "problem": "b", "unique_id": "x"}\n')
    with refused(PromptError, problem="problem"):
        ll.dataset("math500", data_file=rows)
    with refused(PromptError, problem="prompt"):
        rows.write_text('{"prompt": "a", "prompt": "b"}\n')
        ll.read_prompts(rows)
    one = tmp_path / "rows.json"
    one.write_text('[{"problem": "a", "answer": "1", "problem": "b", "unique_id": "x"}]')
    with refused(PromptError, problem="problem"):
        ll.dataset("math500", data_file=one)
    columns = [pa.array([text]) for text in ("a", "1", "b", "x")]
    parquet = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pa.Table.from_arrays(columns, ["problem", "answer", "problem", "unique_id"]), parquet)
    with refused(PromptError, problem="problem"):
        ll.dataset("math500", data_file=parquet)


@needs_inspect
def test_data_files_on_the_command_line(tiny_folder, tmp_path):
    """The same files through `trace` and `eval`: done, or one sentence."""
    model, out, done = tiny_folder("llama"), tmp_path / "out", 0
    whole = [("gsm8k", "another column", pa.array([NOON]), ".parquet"), ("math500", "another column", "text", ".csv")]
    few = ("--max-new-tokens", "1", "--device", "cpu", "--out", out)
    for number, (name, column, value, suffix) in enumerate([*table()[-cases(3, 300) :], *whole]):
        path = tmp_path / f"rows{suffix}"
        if suffix == ".parquet":
            columns = {key: pa.array([text]) for key, text in ROWS[name].items()}
            pyarrow.parquet.write_table(pa.table(columns | {column: value}), path)
        else:
            written(path, [{key: text for key, text in (ROWS[name] | {column: value}).items() if text is not GONE}])
        asked = ("trace", "--dataset", name) if number % 4 else ("eval", "--tasks", _task(name))
        shutil.rmtree(out, ignore_errors=True)
        said = knock(*asked, "--model", model, "--data-file", path, *few)
        assert bool(said) != (out / "manifest.json").exists(), (asked, column, suffix, said)
        done += not said
    assert done


def _task(name):
    return {"gpqa": "gpqa_diamond", "math500": "math"}.get(name, name)


BASES = {
    "trace": ("--model", "MODEL", "--prompts", "PROMPTS", "--max-new-tokens", "1", "--device", "cpu", "--out", "OUT"),
    "generate": ("--model", "MODEL", "--prompt", "ab", "--max-new-tokens", "2", "--device", "cpu"),
    "bench decode": ("--model", "MODEL", "--max-new-tokens", "1", "--rounds", "1", "--device", "cpu"),
    "bench trace": ("--model", "MODEL", "--tokens", "4", "--rounds", "1", "--device", "cpu"),
    "bench analysis": ("--run", "RUN"),
    "bench speculative": ("--model", "MODEL", "--limit", "2", "--max-new-tokens", "2", "--policies", "every-other"),
    "figure": ("1", "--run", "RUN", "--out", "OUT"),
    "table": ("all", "--run", "RUN", "--out", "OUT"),
    "report": ("RUN", "--out", "OUT.html"),
    "export": ("RUN", "--out", "OUT.csv"),
    "merge": ("RUN", "RUN", "--out", "OUT"),
    "compare": ("RUN", "RUN", "--out", "OUT"),
    "ablate": ("--model", "MODEL", "--tasks", "sample", "--limit", "1", "--max-new-tokens", "1", "--out", "OUT"),
    "eval": ("--model", "MODEL", "--tasks", "sample", "--limit", "1", "--max-new-tokens", "1", "--out", "OUT"),
    "fit-lens linear": ("--model", "MODEL", "--prompts", "PROMPTS", "--device", "cpu", "--out", "OUT.safetensors"),
    "fit-lens tuned": ("--model", "MODEL", "--prompts", "PROMPTS", "--device", "cpu", "--out", "OUT.safetensors"),
    "fit-lens jacobian": ("--model", "MODEL", "--prompts", "PROMPTS", "--device", "cpu", "--out", "OUT.safetensors"),
    "serve": ("--model", "nosuchmodel"),
    "models": (),
    "datasets": (),
}
"""What each command needs, so that one further option decides what becomes of it."""
HUGE = ("9" * 25, str(2**63), str(2**63 - 1), str(-(2**63) - 1), "-1", "0", "1.5", "x", "nan", "1e400", "", "٣")
BAD = {
    "integer": HUGE,
    "float": ("nan", "inf", "-inf", "-1", "1e400", "-1e400", "1e-400", "9" * 400, "x", ""),
    "path": ("~nosuchuser/x", "n" * 300, "x/" * 3000, "a\udcffb", "\x1b[31m", "", "/dev/null", "/dev/null/x"),
    "text": ("\ud800", "\x1b[31m", "n" * 300, "", "nan", "9" * 25, "-1", "1e400", "~nosuchuser/x", "a=b", "x:y"),
}
DEVICES = (
    "hpu",
    "hpu:0",
    "xpu",
    "meta",
    "cuda:99",
    "cpu:7",
    "npu",
    "fpga",
    "mtia",
    "privateuseone",
    "cuda:" + "9" * 30,
)


def probes():
    """Every (command, option, bad value), in an order drawn once."""
    import typer

    import layerlens.cli

    found = []
    for name in BASES:
        command = typer.main.get_command(layerlens.cli.app)
        for word in name.split():
            command = command.commands[word]
        for option in command.params:
            if getattr(option, "is_flag", True) and option.param_type_name != "argument":
                continue
            kind = {"INT": "integer", "FLOAT": "float", "STRING": "text"}.get(str(option.type), option.type.name)
            for value in BAD.get(kind, BAD["text"]) + (DEVICES if option.name == "device" else ()):
                found.append((name, option.opts[0] if option.param_type_name == "option" else "", value))
    random.Random(0).shuffle(found)
    return found


@pytest.fixture(scope="module")
def places(tiny_folder, tmp_path_factory):
    """A model, a run and a file of prompts to name in commands."""
    folder = tmp_path_factory.mktemp("probes")
    (folder / "prompts.txt").write_text("".join(f"text {number} with words\n" for number in range(30)))
    ll.trace(ll.load(tiny_folder("llama")), ["abc", "b"], out=folder / "run", max_new_tokens=2, progress=False)
    return {"MODEL": tiny_folder("llama"), "RUN": str(folder / "run"), "PROMPTS": str(folder / "prompts.txt")}


@needs_inspect
def test_values_that_no_option_takes(places, tmp_path, monkeypatch):
    """Each command with each option set to each bad value: done, or one sentence, and the run is as it was."""
    monkeypatch.chdir(tmp_path)
    run = {path: path.read_bytes() for path in Path(places["RUN"]).rglob("*") if path.is_file()}
    for number, (name, option, value) in enumerate(probes()[: cases(8, 10**6)]):
        known = places | {
            end: str(tmp_path / f"{number}{end}") for end in ("OUT", "OUT.html", "OUT.csv", "OUT.safetensors")
        }
        given = [known.get(word, word) for word in BASES[name]]
        if option:
            first = given.index(option) if option in given else len(given)
            given[first : first + 2] = [option, value]
        else:
            place = next((place for place, word in enumerate(given) if not word.startswith("-")), None)
            given[place] = value
        try:
            with stopped_after(30):
                knock(*name.split(), *given)
        except BaseException as error:
            raise AssertionError(f"{name} {option} {value[:40]!r}") from error
        for path in Path(places["RUN"]).rglob("*"):
            assert path.is_dir() or path in run, (name, option, value, path)
        assert all(path.read_bytes() == content for path, content in run.items()), (name, option, value)


@contextmanager
def stopped_after(seconds):
    """What takes longer inside is stopped by an error that nothing catches as one of its own."""

    def stop(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
