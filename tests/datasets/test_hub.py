"""The hub: what is asked of it, and what a user reads when it is out of reach, gated, or without that revision.

A hub that is out of reach is a real one here: an address of this machine at which nothing, or a small server, listens.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import layerlens.datasets as ld
import layerlens.sources.hub

NOTHING_LISTENS = "http://127.0.0.1:9"
COMMIT = "a" * 40


def read_in_a_process(home: Path, name: str, endpoint: str = NOTHING_LISTENS, **options: str) -> dict[str, str]:
    """{"ids": ...} or {"error": ..., "kind": ...}, and how often a connection was tried, in a fresh process."""
    program = (
        "import json, socket, sys, layerlens.datasets as ld, datasets\n"
        "tried, connect = [], socket.socket.connect\n"
        "socket.socket.connect = lambda self, address: tried.append(address) or connect(self, address)\n"
        "try: out = {'ids': [p.prompt_id for p in ld.dataset(sys.argv[1], revision=json.loads(sys.argv[2]))]}\n"
        "except Exception as error: out = {'error': str(error), 'kind': type(error).__name__}\n"
        "print(json.dumps({**out, 'tried': len(tried), 'offline': datasets.config.HF_HUB_OFFLINE}))\n"
    )
    unset = {"HF_TOKEN", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_CACHE"}
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    if "offline" in options:
        environment["HF_HUB_OFFLINE"] = options["offline"]
    arguments = [sys.executable, "-c", program, name, json.dumps(options.get("revision"))]
    finished = subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment, timeout=120)
    return json.loads(finished.stdout)


@pytest.mark.parametrize(("name", "offline"), [("gsm8k", "0"), ("gsm8k", "1"), ("gpqa", "0"), ("math500", "0")])
def test_out_of_reach_and_not_cached(tmp_path, name, offline):
    result = read_in_a_process(tmp_path, name, offline=offline)
    hub_id = {card.name: card.hub_id for card in ld.names()}[name]
    assert result["kind"] == "PromptError"
    assert result["error"].startswith(f"{hub_id} is not in the cache and the hub cannot be reached; connect")
    assert result["error"].endswith("data_file")
    assert ("HF_TOKEN" in result["error"]) == (name == "gpqa")
    most = 0 if offline == "1" else 2
    assert result["tried"] <= most, "load_dataset by itself tries for 23 seconds"
    assert result["offline"] == (offline == "1"), "the library's own setting is as it was"


class Refusing(BaseHTTPRequestHandler):
    """A hub at which everything is gated, or everything lacks the revision, as the server's `refusal` says."""

    def do_HEAD(self):
        status, code = self.server.refusal
        self.server.asked.append(self.path)
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *arguments):
        pass


@pytest.fixture
def refusing_hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def address(server) -> str:
    return f"http://127.0.0.1:{server.server_port}"


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_dataset(tmp_path, refusing_hub, status):
    refusing_hub.refusal = (status, "GatedRepo")
    result = read_in_a_process(tmp_path, "gpqa", endpoint=address(refusing_hub))
    assert result["kind"] == "PromptError"
    for piece in ["Idavidrein/gpqa", "gated", "access granted", "HF_TOKEN", "data_file"]:
        assert piece in result["error"]
    assert any("Idavidrein/gpqa" in path for path in refusing_hub.asked), "the server was asked"


def test_a_revision_that_the_hub_does_not_have(tmp_path, refusing_hub):
    refusing_hub.refusal = (404, "RevisionNotFound")
    result = read_in_a_process(tmp_path, "gsm8k", endpoint=address(refusing_hub), revision="v9")
    assert result["kind"] == "PromptError"
    for piece in ["openai/gsm8k at revision 'v9'", "check revision", "data_file"]:
        assert piece in result["error"]
    assert "HF_TOKEN" not in result["error"]


@pytest.fixture
def home_with_gsm8k(tmp_path):
    """A cache as `datasets` leaves it after reading two rows of GSM8K at COMMIT from the hub."""
    datasets = pytest.importorskip("datasets")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"1 + {n}?", "answer": f"#### {n + 1}"}) + "\n" for n in (0, 1)))
    table = datasets.load_dataset(
        "json", data_files={"test": str(rows)}, split="test", cache_dir=str(tmp_path / "json")
    )
    made = Path(table.cache_files[0]["filename"]).parent
    cached = tmp_path / "home" / "datasets" / "openai___gsm8k" / "main" / "0.0.0" / COMMIT
    cached.mkdir(parents=True)
    shutil.copy(made / "json-test.arrow", cached / "gsm8k-test.arrow")
    info = json.loads((made / "dataset_info.json").read_text())
    info |= {"builder_name": "parquet", "dataset_name": "gsm8k", "config_name": "main"}
    (cached / "dataset_info.json").write_text(json.dumps(info))
    return tmp_path / "home"


@pytest.mark.parametrize(("offline", "revision"), [("0", None), ("0", COMMIT), ("1", COMMIT)])
def test_a_cached_copy_is_read_without_a_network(home_with_gsm8k, offline, revision):
    result = read_in_a_process(home_with_gsm8k, "gsm8k", offline=offline, revision=revision)
    assert result.get("ids") == ["0", "1"], result


@pytest.mark.parametrize("revision", ["b" * 40, "main"])
def test_a_cached_copy_does_not_pass_for_another_revision(home_with_gsm8k, revision):
    result = read_in_a_process(home_with_gsm8k, "gsm8k", revision=revision)
    assert result["kind"] == "PromptError"
    for piece in ["cached copy of openai/gsm8k", f"revision '{revision}'", "data_file"]:
        assert piece in result["error"]


@pytest.mark.parametrize("revision", [None, "v1"])
@pytest.mark.parametrize(("name", "config", "split"), [("gsm8k", "main", "test"), ("math500", None, "test")])
def test_what_is_asked_of_the_hub(monkeypatch, name, config, split, revision):
    import datasets

    asked = []
    rows = [{"question": "a?", "answer": f"#### {n}", "problem": "a", "unique_id": str(n), "more": 1} for n in range(5)]

    def load_dataset(*arguments, **options):
        asked.append((arguments, options, datasets.config.HF_HUB_OFFLINE))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("layerlens.sources.hub.answers", lambda *_, **__: True)
    dataset = ld.dataset(name, limit=3, revision=revision)
    hub_id = {card.name: card.hub_id for card in ld.names()}[name]
    assert asked == [((hub_id, config), {"split": split, "revision": revision}, False)]
    assert [prompt.prompt_id for prompt in dataset] == ["0", "1", "2"]
    assert (dataset.name, dataset.config, dataset.split) == (name, config, split)
    assert (dataset.revision, dataset.sha256) == (revision, None)
    assert len(ld.dataset(name, limit=9)) == 5


def test_a_release_that_has_changed_its_columns(monkeypatch, refused):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: datasets.Dataset.from_list([{"q": "a?"}]))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("layerlens.sources.hub.answers", lambda *_, **__: True)
    with refused("openai/gsm8k, row 1", "'question', 'answer'", "'q'"):
        ld.dataset("gsm8k")


@pytest.mark.parametrize(
    "error", [ConnectionError("a\nb"), OSError(), ValueError("no such config."), RuntimeError("x")]
)
def test_any_failure_of_the_library_is_one_sentence_and_leaves_its_setting(monkeypatch, refused, error):
    import datasets

    def load_dataset(*arguments, **options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for offline in (False, True):
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
        monkeypatch.setattr("layerlens.sources.hub.answers", lambda *_, **__: True)
        with refused("data_file", given="openai/gsm8k"):
            ld.dataset("gsm8k")
        assert datasets.config.HF_HUB_OFFLINE is offline


def test_the_hub_is_asked_once_whether_it_answers(monkeypatch):
    import huggingface_hub

    asked = []

    def refuse(*arguments, **options):
        asked.append(arguments)
        raise ConnectionError

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    assert not layerlens.sources.hub.answers("openai/gsm8k", "README.md", repo_type="dataset")
    assert len(asked) == 1
