"""What a large corpus will need, before anything is built. Run: pytest tests/runs/test_estimate.py"""

import gzip
import json
import random

import pytest

from dream.build import build_module, build_text
from dream.corpora.jsonl import JsonlCorpus
from dream.runs import estimate
from dream.store import sample
from dream.store.build import open_or_build
from dream.store.tokens import BatchTokenizer
from dream.utils.errors import ConfigError

LENGTHS = {"passage_tokens": 24, "context_tokens": 12, "min_context_tokens": 6, "target_tokens": 8}
WORDS = ["bade", "fogu", "lemi", "bora", "tiko", "nafe", "rusa", "gelo"]


def write_corpus(folder, name: str = "c.jsonl", documents: int = 3000) -> JsonlCorpus:
    """Documents that become longer to the end of the file, with bad ones and one without text."""
    draw, file = random.Random(0), folder / name
    opened = gzip.open if name.endswith(".gz") else open
    with opened(file, "wt") as lines:
        for n in range(documents):
            words = " ".join(draw.choice(WORDS) for _ in range(20 + n // 20))
            lines.write(json.dumps({"_id": f"d{n}", "text": words}) + "\n" + ("{bad\n" if n % 50 == 0 else ""))
        lines.write('{"text": " "}\n')
    return JsonlCorpus("c", str(file), "_id", "title", ["text"], True, None, None, "skip", 1, None)


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz"])
def test_the_estimate_is_near_what_is_built(tmp_path, tokenizer, monkeypatch, name):
    monkeypatch.setattr(sample, "PIECE_BYTES", 2000)
    corpus = write_corpus(tmp_path, name)
    needs = sample.estimate(corpus, [BatchTokenizer(tokenizer)] * 2, [24, 12, 6, 8], "span")
    store = open_or_build(tmp_path / "stores", corpus, tokenizer, tokenizer, **LENGTHS)
    size = sum(file.stat().st_size for file in store.path.iterdir())
    error = 0.1 if name == "c.jsonl" else 0.8  # of a compressed file only the first documents are read
    assert needs.passages == pytest.approx(len(store.passages), rel=error)
    assert needs.store_bytes == pytest.approx(size, rel=error)
    assert needs.seconds > 0


def test_a_small_corpus_is_read_as_a_whole(tmp_path, tokenizer):
    corpus = write_corpus(tmp_path, documents=20)
    documents, share = sample.sample(corpus)
    assert [document.id for document in documents] == [f"d{n}" for n in range(20)]
    assert share == pytest.approx(1, abs=0.01)


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr(estimate, "LARGE_BYTES", 1)


def built(config, *overrides: str):
    cfg = config("run", *overrides)
    return build_module(cfg, build_text(cfg))


def test_it_is_logged_before_the_store_and_only_then(config, large, capsys):
    built(config)
    printed = capsys.readouterr().out
    assert "has about" in printed.split("Preparing the store")[0]
    assert "embeddings" in printed
    assert "BM25" in printed
    assert "preparing takes about" in printed
    built(config)
    assert "has about" not in capsys.readouterr().out


def test_a_small_corpus_is_prepared_without(config, capsys):
    built(config)
    assert "has about" not in capsys.readouterr().out


def test_too_little_disk_or_memory_is_refused(config, large, monkeypatch):
    usage = estimate.shutil.disk_usage
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda folder: usage(folder)._replace(free=1000))
    with pytest.raises(ConfigError, match=r"paths.data=.*: needs about .*, but 0 MB are free; choose a folder"):
        built(config)
    monkeypatch.setattr(estimate.shutil, "disk_usage", usage)
    monkeypatch.setattr(estimate, "available_memory", lambda: 1000)
    with pytest.raises(ConfigError, match=r"corpus=jsonl: needs about .* of memory, but this machine has 0 MB"):
        built(config)


def test_memory_for_bm25_is_needed_only_if_it_is_used(config, large, capsys, monkeypatch):
    monkeypatch.setattr(estimate, "BM25_BYTES", 10**9)  # of a passage: more than any machine has
    with pytest.raises(ConfigError, match=r"corpus=jsonl: needs about [\d,.]+ GB of memory"):
        built(config)
    capsys.readouterr()
    built(config, "candidates=index", "corpus.qrels=null")
    assert "BM25" not in capsys.readouterr().out.partition("preparing takes")[0]


def test_sizes_and_times_are_short():
    assert [estimate._size(size) for size in (3e6, 7e8, 1.5e10)] == ["3 MB", "0.7 GB", "15.0 GB"]
    assert [estimate.duration(seconds) for seconds in (4, 600, 10800)] == ["4 s", "10 min", "3.0 h"]
