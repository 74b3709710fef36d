"""dream-export from start to end: folders, refusals, the card, the upload. Run: pytest tests/export/test_command.py"""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from tests.evaluation.conftest import composed, training, world  # noqa: F401

from dream.commands import export as command
from dream.commands.evaluate import evaluate
from dream.export import passages
from dream.export.formats import FORMATS
from dream.utils import errors
from dream.utils.errors import ConfigError, DataError


@pytest.fixture
def run(world) -> Path:  # noqa: F811
    return world / "logs/sweep/0"


@pytest.fixture
def config(world, run, tmp_path):  # noqa: F811
    def make(*overrides: str):
        folders = [f"paths.data={world / 'data'}", f"paths.logs={world / 'logs'}", "paths.run=unused"]
        return composed("export", *folders, f"run={run}", f"path={tmp_path / 'out'}", "check.texts=20",
                        "check.passages=50", *overrides)  # fmt: skip

    return make


def test_it_writes_beside_the_run(world, run, config):  # noqa: F811
    command.export(config("to=faiss", "path=null"))
    about = json.loads((run / "exports/faiss/dream_export.json").read_text())
    assert (about["format"], about["run"]) == ("faiss", "sweep/0")
    assert about["checked"]["lowest_cosine"] > 0.99999
    assert str(world) not in "".join(file.read_text() for file in (run / "exports/faiss").glob("*.json"))


def test_an_existing_folder_is_replaced_only_if_it_is_an_export(config, tmp_path):
    out = tmp_path / "out"
    command.export(config("to=faiss"))
    with pytest.raises(ConfigError, match=f"path={out}: exists; choose another folder, or overwrite=true"):
        command.export(config("to=faiss"))
    (out / "old").touch()
    command.export(config("to=faiss", "overwrite=true"))
    assert not (out / "old").exists()
    (out / "dream_export.json").unlink()
    with pytest.raises(ConfigError, match="is no earlier export, so it is not overwritten"):
        command.export(config("to=faiss", "overwrite=true"))
    assert (out / "index.faiss").exists()


def test_a_difference_leaves_nothing_behind(config, tmp_path, monkeypatch):
    monkeypatch.setattr(passages, "EXACT", 1.1)
    with pytest.raises(DataError, match="other vectors than the run: cosine"):
        command.export(config("to=faiss"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"to=\?\?\?: choose sentence_transformers, onnx"),
        (["to=tflite"], "to=tflite: choose sentence_transformers, onnx"),
        (["to=faiss", "weights=int8"], "weights=int8: only to=onnx and to=openvino"),
        (["to=onnx", "weights=int4"], "weights=int4: choose float32 or int8"),
        (["to=faiss", "push=me/model"], "push=me/model: only to=hub"),
        (["to=hub", "push=model"], "push=model: give OWNER/NAME"),
        (["to=hub", "push=me/my--model"], "push=me/my--model: give OWNER/NAME"),
        (["to=faiss", "check.texts=0"], "check.texts=0: at least 1"),
        (["to=faiss", "run=nowhere"], "no run is there"),
    ],
)
def test_a_mistake_is_reported_in_one_line(config, overrides, message):
    with pytest.raises(ConfigError, match=message):
        command.export(config(*overrides))


@pytest.mark.parametrize("name", [name for name in FORMATS if FORMATS[name].packages])
def test_a_missing_package_is_named_with_its_extra(config, name, monkeypatch):
    monkeypatch.setattr(errors, "find_spec", lambda package: None)
    extra = FORMATS[name].extra
    with pytest.raises(
        ConfigError, match=rf"to={name}: needs the package \w+: pip install 'dream-retrieval\[{extra}\]'"
    ):
        command.export(config(f"to={name}"))
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f"\n{extra} = [" in project


def test_the_card_has_figures_with_intervals(world, run, config, tmp_path):  # noqa: F811
    pytest.importorskip("sentence_transformers")
    command.export(config("to=hub"))
    without = (tmp_path / "out/README.md").read_text()
    assert "without intervals" in without
    folders = [
        f"paths.data={world / 'data'}",
        f"paths.logs={world / 'logs'}",
        f"paths.run={world / 'logs/evaluations/one'}",
    ]
    evaluate(composed("evaluate", *folders, f"run={run}", "statistics.resamples=50", "split=dev"))
    command.export(config("to=hub", "license=apache-2.0", "overwrite=true"))
    card = (tmp_path / "out/README.md").read_text()
    _, front, text = card.split("---\n", 2)
    metadata = yaml.safe_load(front)
    results = json.loads((world / "logs/evaluations/one/results.json").read_text())["systems"]["run"]["ndcg_at_10"]
    assert metadata["license"] == "apache-2.0"
    assert metadata["library_name"] == "sentence-transformers"
    assert metadata["language"] == "en"
    found = {one["type"]: one["value"] for one in metadata["model-index"][0]["results"][0]["metrics"]}
    assert found["ndcg_at_10"] == pytest.approx(results["mean"], abs=1e-6)
    assert "{:.4f} [{:.4f}, {:.4f}]".format(results["mean"], *results["interval"]) in text
    for part in ("| objective | `info_nce` |", "| seed | 0 |", "80 documents", "8 steps of 16 windows", "encode_query",
                 "95% bootstrap intervals"):  # fmt: skip
        assert part in text
    assert str(world) not in card
    os.utime(world / "logs/evaluations/one/results.json", (0, 0))  # the run was then trained further
    command.export(config("to=hub", "overwrite=true"))
    assert (tmp_path / "out/README.md").read_text() == without
    assert {"model.safetensors", "tokenizer.json", "modules.json"} <= {
        file.name for file in (tmp_path / "out").iterdir()
    }


class Hub(BaseHTTPRequestHandler):
    """The calls of an upload: create the repository, ask how each file is sent, commit."""

    calls: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.calls.append((self.path, body))
        if self.path.endswith("/preupload/main"):
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for file in json.loads(body)["files"]]  # fmt: skip
            self._answer({"files": files})
        elif "/commit/" in self.path:
            self._answer({"commitUrl": "http://127.0.0.1/me/model/commit/abc", "commitOid": "abc", "success": True})
        else:
            self._answer({"url": "http://127.0.0.1/me/model", "name": "me/model", "id": "1"})

    def do_GET(self) -> None:
        self._answer({"id": "me/model", "sha": "abc", "siblings": []})

    def _answer(self, content: dict) -> None:
        encoded = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def hub():
    Hub.calls = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def push(config, endpoint: str, tmp_path) -> subprocess.CompletedProcess:
    """Push in another process: the library reads its environment when it is imported."""
    cfg = config("to=hub")
    overrides = [f"{key}={cfg[key]}" for key in ("run", "to", "path")]
    overrides += [f"paths.{key}={cfg.paths[key]}" for key in ("data", "logs")]
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_secret",
                                "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf")}  # fmt: skip
    return subprocess.run([sys.executable, "-m", "dream.commands.export", *overrides, "check.texts=5",
                           "push=me/model"], env=environment, capture_output=True, text=True, timeout=120)  # fmt: skip


@pytest.mark.slow
def test_push_creates_the_repository_and_uploads_every_file(config, hub, tmp_path):
    pytest.importorskip("sentence_transformers")
    done = push(config, f"http://127.0.0.1:{hub.server_port}", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Uploaded: " in done.stdout
    paths = [path for path, _ in Hub.calls]
    assert paths[0] == "/api/repos/create"
    created = json.loads(Hub.calls[0][1])
    assert (created["name"], created["organization"]) == ("model", "me")
    assert created.get("private") is True or created.get("visibility") == "private"
    commit = b"".join(body for path, body in Hub.calls if "/commit/" in path).decode()
    sent = {json.loads(line)["value"]["path"] for line in commit.splitlines() if '"file"' in line}
    assert sent == {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*") if file.is_file()}


@pytest.mark.slow
def test_a_failed_upload_keeps_the_folder(config, tmp_path):
    pytest.importorskip("sentence_transformers")
    done = push(config, "http://127.0.0.1:9", tmp_path)
    assert done.returncode == 1
    assert "error: push=me/model: not uploaded (" in done.stderr
    assert (tmp_path / "out/README.md").exists()
