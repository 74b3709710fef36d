"""Stores that several processes cut. Run: pytest tests/store/test_parallel.py"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dream.corpora.jsonl import JsonlCorpus
from dream.store import build, parallel
from dream.store.build import open_or_build
from dream.utils.errors import DreamError

LENGTHS = {"passage_tokens": 20, "context_tokens": 24, "min_context_tokens": 10, "target_tokens": 12}
WORDS = ["dana", "fogu", "lemi", "bora", "tiko", "nafe", "rusa", "gelo", "mipa", "sudo", "Ära", "naïve", "北京"]
BUILD = """
import sys
from pathlib import Path
from transformers import AutoTokenizer
from dream.corpora.jsonl import JsonlCorpus
from dream.store import build, parallel
from dream.utils.signals import interruptible

parallel.PROCESS_BYTES, parallel.usable_cores = 1, lambda: 2
build.bounded_batches = lambda items, _: ([item] for item in items)
slow = build._Builder._write
build._Builder._write = lambda *args: (print("writing", flush=True), __import__("time").sleep(0.2), slow(*args))
folder, file, tokenizer = map(Path, sys.argv[1:])
corpus = JsonlCorpus("c", str(file), "_id", "title", ["text"], True, None, None, "skip", 1, None)
tokenizer = AutoTokenizer.from_pretrained(tokenizer)
with interruptible():
    build.open_or_build(folder, corpus, tokenizer, tokenizer, passage_tokens=20, context_tokens=24,
                        min_context_tokens=10, target_tokens=12)
"""


def corpus_with_everything(folder: Path, documents: int = 60) -> JsonlCorpus:
    """Documents with copies, near copies, empty and bad ones, and an id of two texts."""
    lines = []
    for n in range(documents):
        text = " ".join(WORDS[(n * k) % len(WORDS)] + f"{n}." * (k % 4 == 0) for k in range(1, 60 + n % 7))
        lines.append(json.dumps({"_id": f"d{n}", "title": f"Title {n}", "text": text}))
        if n % 5 == 0:
            lines.append(json.dumps({"_id": f"copy{n}", "text": text.replace(" ", "  ")}))
            lines.append(json.dumps({"_id": f"near{n}", "text": f"{text} and more"}))
        if n % 9 == 0:
            lines += ['{"bad', json.dumps({"_id": f"empty{n}", "text": " "})]
            lines.append(json.dumps({"_id": "d0", "text": "other"}))
    file = folder / "c.jsonl"
    file.write_text("\n".join(lines))
    return JsonlCorpus("c", str(file), "_id", "title", ["text"], True, None, None, "skip", 1, None)


@pytest.fixture
def two_processes(monkeypatch):
    monkeypatch.setattr(parallel, "PROCESS_BYTES", 1)
    monkeypatch.setattr(parallel, "usable_cores", lambda: 2)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("context", ["span", "sentence"])
def test_the_store_of_several_processes_is_bitwise_that_of_one(
    tmp_path, tokenizer, lower_case_tokenizer, monkeypatch, two_processes, context
):
    monkeypatch.setattr("dream.store.tokens.BATCH_ITEMS", 7)
    corpus = corpus_with_everything(tmp_path)
    lengths = LENGTHS | ({} if context == "span" else {"min_context_tokens": 1})
    many = open_or_build(tmp_path / "many", corpus, lower_case_tokenizer, tokenizer, context=context, **lengths)
    monkeypatch.setattr(parallel, "usable_cores", lambda: 1)
    one = open_or_build(tmp_path / "one", corpus, lower_case_tokenizer, tokenizer, context=context, **lengths)
    assert one.manifest["counts"]["duplicates"] == 12
    assert one.manifest["refused"]["not JSON"] == 7
    assert content(many.path) == content(one.path)


def test_one_process_for_small_corpora_and_never_more_than_cores(monkeypatch):
    monkeypatch.setattr(parallel, "usable_cores", lambda: 4)
    assert [parallel.processes_for(megabytes * 10**6) for megabytes in (0, 20, 40, 500)] == [1, 1, 2, 4]
    monkeypatch.setattr(parallel, "usable_cores", lambda: 400)
    assert parallel.processes_for(10**12) == parallel.MOST_PROCESSES


def test_a_process_that_dies_is_reported_and_leaves_nothing(tmp_path, tokenizer, monkeypatch, two_processes):
    start = parallel._Processes._start

    def start_and_kill(pool):
        connection = start(pool)
        pool.children[-1].kill()
        return connection

    monkeypatch.setattr(parallel._Processes, "_start", start_and_kill)
    with pytest.raises(DreamError, match="a process that cuts documents has ended.*fewer cores"):
        open_or_build(tmp_path / "stores", corpus_with_everything(tmp_path), tokenizer, tokenizer, **LENGTHS)
    assert list((tmp_path / "stores").iterdir()) == []


def test_an_error_while_reading_ends_the_processes(tmp_path, tokenizer, monkeypatch, two_processes):
    pools = []
    stop = parallel._Processes._stop
    monkeypatch.setattr(parallel._Processes, "_stop", lambda pool: (stop(pool), pools.append(pool)))
    corpus = corpus_with_everything(tmp_path)
    corpus.on_bad_document = "error"
    with pytest.raises(build.DataError, match="not valid JSON"):
        open_or_build(tmp_path / "stores", corpus, tokenizer, tokenizer, **LENGTHS)
    assert [child.poll() for child in pools[0].children] == [-signal.SIGKILL] * 2


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_build_leaves_no_process_and_no_store(tmp_path, tokenizer, signum):
    corpus = corpus_with_everything(tmp_path)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    arguments = [str(tmp_path / "stores"), str(corpus.path), str(tmp_path / "tokenizer")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", BUILD, *arguments], stdout=subprocess.PIPE, text=True,
                               env=environment)  # fmt: skip
    while "writing" not in process.stdout.readline():
        assert process.poll() is None
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(children) == 2
    process.send_signal(signum)
    assert process.wait(timeout=60) == (-signum if signum == signal.SIGKILL else 128 + signum)
    end = time.monotonic() + 20
    while any(_is_running(child) for child in children):
        assert time.monotonic() < end, "a process is left over"
        time.sleep(0.05)
    left = [file.name for file in (tmp_path / "stores").iterdir()]
    assert left == [] or (signum == signal.SIGKILL and left[0].endswith(".tmp"))
    store = open_or_build(tmp_path / "stores", corpus, tokenizer, tokenizer, **LENGTHS)
    assert [file.name for file in (tmp_path / "stores").iterdir()] == [store.path.name]


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
