"""The examples of docs/vector-stores.md find what the run finds. Run: pytest tests/export/test_vector_stores.py"""

import re
from pathlib import Path

import pytest
import torch
from tests.encoders.tokenizers_of_all_kinds import KINDS
from tests.export.conftest import hf
from tests.export.test_export import MODELS
from tests.random_models import save_random_model

from dream.export.formats import FORMATS

PAGE = Path(__file__).parents[2] / "docs" / "vector-stores.md"
EXAMPLES = dict(re.findall(r'^```python title="(\w+)"\n(.*?)^```', PAGE.read_text(), flags=re.M | re.S))
PACKAGES = {
    "lancedb": ["lancedb"],
    "qdrant": ["qdrant_client"],
    "langchain": ["langchain_core", "langchain_huggingface"],
    "llamaindex": ["llama_index.core", "llama_index.embeddings.huggingface"],
}


@pytest.fixture
def exports(job_of, tmp_path, monkeypatch):
    """The two folders of the page, with an encoder that has prefixes; the current folder is beside them."""
    for package in ("pyarrow", "sentence_transformers"):
        pytest.importorskip(package, reason="an extra that is not installed")
    tokenizer = KINDS["byte_level"]()
    torch.manual_seed(0)
    folder = save_random_model(MODELS["bert"](len(tokenizer)), tokenizer, tmp_path / "bert")
    job = job_of(hf(folder, query_prefix="query: ", passage_prefix="passage: ", max_tokens=30))
    for name in ("parquet", "sentence_transformers"):
        written = tmp_path / "logs/latest/exports" / name
        written.mkdir(parents=True)
        FORMATS[name].write(job, written)
    monkeypatch.chdir(tmp_path)
    return job


def run_example(name: str, query: str) -> dict:
    """The variables after an example, with another query."""
    for package in PACKAGES[name]:
        pytest.importorskip(package, reason="a vector store or framework that is not installed")
    scope: dict = {"query": query}
    exec((EXAMPLES["open"] + EXAMPLES[name]).replace('"how do I read a file"', "query"), scope)
    return scope


@pytest.mark.parametrize("name", ["lancedb", "qdrant"])
def test_a_store_finds_what_the_run_finds(name, exports):
    query = exports.run.store.passage_text(7)
    found = run_example(name, query)["found"]
    ids = [hit["passage"] if isinstance(hit, dict) else hit.id for hit in found]
    sims = [1 - hit["_distance"] if isinstance(hit, dict) else hit.score for hit in found]
    sim_1K, ids_1K = exports.run.index.search(exports.run.encoder.embed_queries([query]), 5)
    torch.testing.assert_close(torch.tensor(sims), sim_1K[0], rtol=0, atol=1e-3)  # the index has float16
    assert ids[0] == ids_1K[0, 0]


@pytest.mark.parametrize("name", ["langchain", "llamaindex"])
def test_a_framework_embeds_as_the_run_does(name, exports, capsys):
    query = exports.run.store.passage_text(7)
    scope = run_example(name, query)
    assert len(capsys.readouterr().out.strip().splitlines()) == 5
    if name == "langchain":
        own = [scope["embeddings"].embed_query(query), scope["embeddings"].embed_documents([query])[0]]
    else:
        own = [scope["embedding"].get_query_embedding(query), scope["embedding"].get_text_embedding(query)]
    encoder = exports.run.encoder
    expected = torch.cat([encoder.embed_queries([query]), encoder.embed_batch([query], "passage", torch.device("cpu"))])
    torch.testing.assert_close(torch.tensor(own), expected.float().detach(), rtol=0, atol=1e-5)


def test_every_example_is_tested():
    assert set(EXAMPLES) == {"open", *PACKAGES}
