"""An export gives the vectors of the run; a difference is an error. Run: pytest tests/export/test_export.py"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tests.encoders.tokenizers_of_all_kinds import KINDS
from tests.export.conftest import hf, random_static
from tests.random_models import save_random_model
from tokenizers import processors
from transformers import (
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    ModernBertConfig,
    ModernBertModel,
    Qwen3Config,
    Qwen3Model,
)

from dream.export import passages
from dream.export.check import compare_vectors
from dream.export.formats import FORMATS
from dream.export.onnx import static_graph
from dream.export.tokens import SIDES, plain_tokenizer, text_reader, weighted_table
from dream.utils.errors import ConfigError, DataError

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CAUSAL = {**SIZES, "max_position_embeddings": 128, "num_key_value_heads": 1}
MODELS = {
    "bert": lambda rows: BertModel(BertConfig(vocab_size=rows, max_position_embeddings=64, **SIZES)),
    "modernbert": lambda rows: ModernBertModel(ModernBertConfig(vocab_size=rows, pad_token_id=0, local_attention=8,
                                                                global_attn_every_n_layers=2, **SIZES)),
    "gpt2": lambda rows: GPT2Model(GPT2Config(vocab_size=rows, n_positions=64, n_embd=16, n_layer=2, n_head=2)),
    "llama": lambda rows: LlamaModel(LlamaConfig(vocab_size=rows, **CAUSAL)),
    "qwen3": lambda rows: Qwen3Model(Qwen3Config(vocab_size=rows, head_dim=8, **CAUSAL)),
}  # fmt: skip
PREFIXES = {"none": {}, "same": {"query_prefix": "query: ", "passage_prefix": "search "},
            "one": {"query_prefix": "find the answer to the question: "}}  # fmt: skip


@pytest.fixture
def model_folder(tmp_path):
    def make(kind: str, tokenizer) -> str:
        torch.manual_seed(0)
        return save_random_model(MODELS[kind](len(tokenizer)), tokenizer, tmp_path / kind)

    return make


def exported(job, name, tmp_path) -> tuple:
    """(folder, what was compared)"""
    chosen = FORMATS[name]
    for package in chosen.packages:
        pytest.importorskip(package)
    folder = tmp_path / f"export_{name}"
    folder.mkdir()
    chosen.write(job, folder)
    return folder, chosen.check(job, folder)


@pytest.mark.parametrize("kind", KINDS)
def test_the_static_tokenizer_gives_the_same_ids(kind, corpus, tmp_path):
    """Of every kind of tokenizer: capitals, unknown words, special tokens as text, cut after max_tokens."""
    encoder = random_static(KINDS[kind](), corpus, tmp_path, max_tokens=6)
    tokenizer = plain_tokenizer(encoder)
    texts = ["", "River STONE zxqvk", "the </s> <unk> stone", "漢字 émile", "the river " * 9, "<s>query: <pad>"]
    table_VD = weighted_table(encoder, tokenizer)
    for text in texts:
        ids = tokenizer.encode(text).ids
        assert len(ids) <= 6
        expected_D = encoder.embed_queries([text])[0]
        found_D = torch.nn.functional.normalize(table_VD[ids].sum(0), dim=0)
        torch.testing.assert_close(found_D, expected_D, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["sentence_transformers", "onnx", "openvino", "hub", "faiss", "parquet"])
def test_a_static_encoder_in_every_format(name, job_of, static, tmp_path):
    job = job_of(static)
    job.config.update(name="tiny", encoder={"_target_": "dream.encoders.static.StaticEncoder"}, seed=0,
                      scorer={"_target_": "dream.scorers.hf.HFScorer", "name": "/models/tiny"},
                      data={"_target_": "dream.data.window_datamodule.WindowDataModule", "batch_size": 4},
                      objective={"_target_": "dream.objectives.info_nce.InfoNCE"},
                      evaluation={"report_split": "dev"})  # fmt: skip
    folder, found = exported(job, name, tmp_path)
    assert found["lowest_cosine"] > 0.99999
    assert found["texts"] >= 20
    assert (folder / "README.md").exists() == (name != "sentence_transformers")


TRANSFORMERS = [
    ("bert", "word_piece", "mean"),
    ("modernbert", "byte_level", "cls"),
    ("gpt2", "byte_level", "last"),
    ("llama", "unigram", "last"),
    ("qwen3", "split_then_byte_level", "last"),
]


@pytest.mark.parametrize(
    ("name", "prefixes", "kind", "tokens", "pooling"),
    [
        *(("sentence_transformers", prefixes, *model) for model in TRANSFORMERS for prefixes in PREFIXES),
        ("onnx", "one", *TRANSFORMERS[0]),  # the graph does not depend on the prefix
        *(pytest.param("onnx", "one", *model, marks=pytest.mark.slow) for model in TRANSFORMERS[1:]),
    ],
)
def test_a_transformer_gives_the_same_vectors(name, prefixes, kind, tokens, pooling, model_folder, job_of, tmp_path):
    chosen = KINDS[tokens]()
    chosen.padding_side = "left"  # as language models are published; absolute positions need it on the right
    encoder = hf(model_folder(kind, chosen), pooling=pooling, max_tokens=20, **PREFIXES[prefixes])
    _, found = exported(job_of(encoder), name, tmp_path)
    assert found["lowest_cosine"] > 0.99999


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_int8_keeps_the_ranking(name, job_of, static, model_folder, tmp_path):
    folder, found = exported(job_of(static, "int8"), name, tmp_path)
    assert found["same_top_10"] > 0.9
    assert abs(found["ndcg_at_10_run"] - found["ndcg_at_10"]) <= 0.005
    assert sum(file.stat().st_size for file in folder.glob("model.*")) < 0.5 * static.weights()["table_VD"].nbytes


def test_int8_without_labels_reports_the_agreement(job_of, model_folder, tmp_path):
    encoder = hf(model_folder("bert", KINDS["word_piece"]()), pooling="mean", max_tokens=20)
    _, found = exported(job_of(encoder, "int8", labels=False), "onnx", tmp_path)
    assert "ndcg_at_10" not in found
    assert 0 < found["same_top_10"] <= 1
    assert found["mean_cosine"] > 0.98


def test_int8_that_loses_too_much_is_refused(job_of, static, monkeypatch, tmp_path):
    from dream.export import check

    monkeypatch.setattr(check, "MOST_NDCG", -1)
    with pytest.raises(DataError, match=r"weights=int8: nDCG@10 falls .* use weights=float32"):
        exported(job_of(static, "int8"), "onnx", tmp_path)


def test_the_int8_table_is_rounded_by_row():
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    table_VD = torch.tensor([[1.0, -0.5], [100.0, 1.0], [0.0, 0.0]])
    session = onnxruntime.InferenceSession(static_graph(table_VD, int8=True).SerializeToString())
    inputs = {"input_ids": np.array([[0, 2], [1, 0]]), "attention_mask": np.array([[1, 1], [1, 0]])}
    found_BD = session.run(None, inputs)[0]
    expected_BD = torch.nn.functional.normalize(torch.tensor([[127.0, -64.0], [127.0, 1.0]]), dim=1)
    np.testing.assert_allclose(found_BD, expected_BD.numpy(), atol=1e-6)


def test_other_vectors_are_an_error(job_of, static):
    job = job_of(static)

    def embed(texts, side):
        vectors_BD = static.embed_texts(texts, side).numpy().copy()
        vectors_BD[3] = -vectors_BD[3]
        return vectors_BD

    with pytest.raises(DataError, match=r"other vectors than the run: cosine -1\.0000000 .* nothing was written"):
        compare_vectors(job, embed, 0.99999)


def test_a_prefix_with_a_special_token(job_of, model_folder, tmp_path):
    encoder = hf(model_folder("bert", KINDS["word_piece"]()), pooling="mean", max_tokens=20, query_prefix="</s>find ")
    reader = text_reader(encoder)
    assert reader.reads_special
    _, found = exported(job_of(encoder), "sentence_transformers", tmp_path)
    assert found["lowest_cosine"] > 0.99999


def test_a_decoder_without_special_tokens(job_of, model_folder, tmp_path):
    """Only its queries have a prefix: an empty passage has no token, so there is nothing to compare."""
    reads = KINDS["byte_level"]()
    reads.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    encoder = hf(model_folder("qwen3", reads), pooling="last", max_tokens=20, query_prefix="find the passage: ")
    assert encoder.framing.length("passage", 0) == 0
    _, found = exported(job_of(encoder), "sentence_transformers", tmp_path)
    assert found["lowest_cosine"] > 0.99999


def test_an_encoder_with_a_decoder_is_no_sentence_transformers_model(job_of, tokenizer, tmp_path):
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}  # fmt: skip
    model = BartModel(BartConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes))
    encoder = hf(save_random_model(model, tokenizer, tmp_path / "bart"), pooling="mean", max_tokens=20)
    job = job_of(encoder)
    with pytest.raises(ConfigError, match="would take the embedding from the decoder"):
        FORMATS["sentence_transformers"].write(job, tmp_path)
    _, found = exported(job, "onnx", tmp_path)
    assert found["lowest_cosine"] > 0.9999


def test_embed_runs_without_torch_and_dream(job_of, static, tmp_path):
    folder, _ = exported(job_of(static), "onnx", tmp_path)
    blocked = "import sys\nfor name in ('torch', 'transformers', 'dream'): sys.modules[name] = None\n"
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    code = (
        f"{blocked}{code}\nimport json; print(json.dumps(encoder.embed(['Some text, and MORE', ''], 'query').tolist()))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(found, static.embed_queries(["Some text, and MORE", ""]).numpy(), atol=1e-6)


def test_parquet_and_faiss_have_the_rows_of_the_index(job_of, static, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import faiss

    job = job_of(static)
    store = job.run.store
    table = parquet.read_table(exported(job, "parquet", tmp_path)[0] / "passages.parquet")
    assert table.num_rows == len(store.passages)
    row = table.slice(5, 1).to_pylist()[0]
    assert row["text"] == store.passage_text(5) == store.texts[0][row["start"] : row["end"]] or row["document"] != "d0"
    folder, _ = exported(job, "faiss", tmp_path)
    index = faiss.read_index(str(folder / "index.faiss"))
    lines = [json.loads(line) for line in (folder / "passages.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == table["text"].to_pylist()
    query_QD = static.embed_queries(["some words"])
    _, own = job.run.index.search(query_QD, 5)
    _, found = index.search(query_QD.numpy(), 5)
    assert found[0].tolist() == own[0].tolist()


def test_an_index_made_with_mixed_precision_is_exported(job_of, model_folder, tmp_path, monkeypatch):
    """Its vectors differ more from those in float32, which the check computes. Those of a tiny model differ little."""
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(passages, "EXACT", 0.9999999)
    job = job_of(hf(model_folder("bert", KINDS["word_piece"]()), pooling="mean", max_tokens=20))
    with torch.autocast("cpu", torch.bfloat16):
        job.run.index.refresh(job.run.encoder, job.run.store, 1, "cpu", 64)
    with pytest.raises(DataError, match="the export has other vectors than the run: cosine"):
        exported(job, "parquet", tmp_path)
    job.run.cfg = OmegaConf.create({"trainer": {"precision": "bf16-mixed"}})
    (tmp_path / "mixed").mkdir()
    assert 0.999 < exported(job, "parquet", tmp_path / "mixed")[1]["lowest_cosine"] < 0.9999999


def test_sides_are_those_of_encoders():
    assert SIDES == ("query", "passage")
