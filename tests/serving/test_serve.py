"""The search page and its JSON over real HTTP on 127.0.0.1. Run: pytest tests/serving"""

import html
import json
import re
import shutil
import subprocess
import threading
import time
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import numpy as np
import pytest
from tests.evaluation.conftest import composed, training, world  # noqa: F401

from dream.commands import serve as command
from dream.evaluation.searcher import MODES, Searcher
from dream.indexes.words import Analyzer
from dream.serving.highlight import snippet
from dream.utils import errors
from dream.utils.errors import ConfigError

pytest.importorskip("starlette")
uvicorn = pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def searcher(world) -> Searcher:  # noqa: F811
    return Searcher(world / "logs/sweep/0")


@pytest.fixture(scope="module")
def address(searcher):
    """A server on a free port, in a thread."""
    yield from served(searcher, None)


@pytest.fixture(scope="module")
def judge(searcher, world):  # noqa: F811
    """The gain by the language model of the run."""
    from dream.serving.gain import open_gain

    return open_gain(searcher, world / "logs/sweep/0")


@pytest.fixture(scope="module")
def judged(searcher, judge):
    """A server that also has the language model."""
    yield from served(searcher, judge)


def served(searcher: Searcher, gain):
    from dream.serving.page import make_app
    from dream.serving.server import bind

    listener = bind(0)
    server = uvicorn.Server(uvicorn.Config(make_app(searcher, 5, gain), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()


def get(address: str, path: str, **parameters) -> str:
    with urlopen(f"{address}{path}?{urlencode(parameters)}", timeout=20) as answer:
        return answer.read().decode()


@pytest.mark.parametrize("mode", MODES)
def test_the_json_is_that_of_a_search(address, searcher, mode):
    query = " ".join(searcher.store.texts[7].split()[-2:])
    answer = json.loads(get(address, "/api/search", q=query, mode=mode, k=3))
    hits = searcher.search(query, 3, mode)
    assert (answer["query"], answer["mode"]) == (query, mode)
    assert [(hit["rank"], hit["id"], hit["title"], hit["text"]) for hit in answer["hits"]] == [
        (rank, hit.id, hit.title, hit.text) for rank, hit in enumerate(hits, start=1)
    ]
    assert [hit["score"] for hit in answer["hits"]] == pytest.approx([hit.score for hit in hits])
    assert "".join(part["text"] for part in answer["hits"][0]["snippet"]).strip("… ") in " ".join(hits[0].text.split())


def test_facts(address, searcher):
    assert json.loads(get(address, "/api/about")) == {
        "corpus": "jsonl", "documents": 80, "passages": len(searcher.store.passages), "modes": list(MODES),
        "gain": False}  # fmt: skip


def test_the_gain_is_the_difference_of_two_log_likelihoods(judged, judge, searcher, world):  # noqa: F811
    from hydra.utils import instantiate

    from dream.runs.load import open_config

    query = " ".join(searcher.store.texts[7].split()[-4:])
    answer = json.loads(get(judged, "/api/search", q=query, mode="bm25", k=2))
    hit = answer["hits"][0]
    config = open_config(world / "logs/sweep/0")
    config.scorer.scoring.compile = False
    scorer = instantiate(config.scorer, corpus=instantiate(config.corpus))
    scorer.load(searcher.store)
    ids = scorer.tokenizer(query, add_special_tokens=False)["input_ids"]
    row = searcher.search(query, 1, "bm25")[0].row
    first, end = np.searchsorted(searcher.store.passage_documents, [row, row + 1])
    gains = []
    for passage in range(first, end):
        texts = [scorer.passage(searcher.store, passage), np.empty(0, dtype=np.int64)]
        sequences = [scorer.prompt.join(text, np.array(ids)) for text in texts]
        loglik = scorer.score_sequences(sequences, [len(ids)] * 2)
        gains.append((loglik[0] - loglik[1]) / len(ids))
    assert min(abs(gain - hit["gain"]) for gain in gains) < 1e-3
    assert json.loads(get(judged, "/api/about"))["gain"] is True


def test_the_page_shows_gains_only_if_the_language_model_is_loaded(address, judged, searcher):
    query = " ".join(searcher.store.texts[3].split()[-2:])
    assert len(re.findall(r'class="gain"[^>]*>LM [+-]\d+\.\d\d<', get(judged, "/", q=query))) >= 5
    assert 'class="gain"' not in get(address, "/", q=query)


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({}, "q: give a query"),
        ({"q": " "}, "q: give a query"),
        ({"q": "x" * 5000}, "q: give a query"),
        ({"q": "x", "mode": "sparse"}, "mode=sparse: choose dense, bm25, hybrid"),
        ({"q": "x", "k": "0"}, "k=0: a number from 1 to 100"),
        ({"q": "x", "k": "-1"}, "k=-1: a number"),
        ({"q": "x", "k": "9" * 30}, "a number from 1 to 100"),
    ],
)
def test_a_wrong_parameter_is_a_bad_request(address, parameters, reason):
    with pytest.raises(HTTPError) as error:
        get(address, "/api/search", **parameters)
    assert error.value.code == 400
    assert reason in json.loads(error.value.read())["error"]


def test_the_page_has_three_rankings_and_marks_words(address, searcher):
    query = " ".join(searcher.store.texts[3].split()[-2:])
    page = get(address, "/", q=query)
    for mode in MODES:
        section = page.partition(f'<section id="{mode}">')[2].partition("</section>")[0]
        titles = re.findall(r"<summary>\d+\. (.*?)</summary>", section)
        assert titles == [hit.title for hit in searcher.search(query, 5, mode)]
    assert {html.unescape(word).lower() for word in re.findall("<mark>(.*?)</mark>", page)} == set(query.split())
    assert "<section" not in get(address, "/")


def test_a_query_is_text_and_not_html(address):
    page = get(address, "/", q='<script>alert(1)</script>"><b>')
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_another_host_name_is_refused(address):
    with pytest.raises(HTTPError) as error:
        urlopen(Request(f"{address}/api/about", headers={"Host": "evil.example"}), timeout=20)
    assert error.value.code == 400


def test_snippet_takes_the_piece_with_most_words():
    text = "Reading is fun. " + "filler words here " * 40 + "The reader reads files line by line. " + "more " * 90
    parts = snippet(text, "reading file lines", Analyzer("english"), 120)
    joined = "".join(part.text for part in parts)
    assert [part.text for part in parts if part.marked] == ["reads", "files", "line", "line"]
    assert joined.startswith("… ")
    assert joined.endswith(" …")
    assert len(joined) <= 120 + 4
    assert "".join(part.text for part in snippet("short", "nothing", Analyzer("english"))) == "short"
    assert snippet("", "a query", Analyzer(None)) == []


def test_mistakes_are_reported_in_one_line(world, monkeypatch):  # noqa: F811
    def config(*overrides):
        return composed("serve", "paths.run=unused", f"run={world / 'logs/sweep/0'}", *overrides)

    with pytest.raises(ConfigError, match="k=0: at least 1"):
        command.serve(config("k=0"))
    with pytest.raises(ConfigError, match="port=70000: 0 for any free port"):
        command.serve(config("port=70000"))
    from dream.serving.server import bind

    taken = bind(0)
    taken.listen()
    port = taken.getsockname()[1]
    with pytest.raises(ConfigError, match=f"port={port}: .*choose another port"):
        command.serve(config(f"port={port}"))
    taken.close()
    monkeypatch.setattr(errors, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=r"needs the package starlette: pip install 'dream-retrieval\[serve\]'"):
        command.serve(config())


@pytest.mark.slow
def test_a_browser_shows_it(address, judged, searcher):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs chromium")
    query = " ".join(searcher.store.texts[3].split()[-2:])
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"{address}/?{urlencode({'q': query})}"]
    done = subprocess.run([chromium, *arguments], capture_output=True, text=True, timeout=120)
    assert done.stdout.count("<section") == 3
    assert "<mark>" in done.stdout
    arguments[-1] = f"{judged}/?{urlencode({'q': query})}"
    done = subprocess.run([chromium, *arguments], capture_output=True, text=True, timeout=120)
    assert done.stdout.count('class="gain"') >= 5
