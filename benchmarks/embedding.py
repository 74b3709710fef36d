"""Embeds documents with the same weights as sentence-transformers: DREAM's store and shards against `encode`.

    pip install 'dream-retrieval[bench]'
    python benchmarks/embedding.py --model NAME_OR_PATH [--beir DIR] [--documents 2000] [--device cuda]

DREAM reads a JSONL file, tokenises, writes a store, embeds, and writes float16 shards. The peers get a list of texts in
memory, and return an array. All get the first 128 tokens of each document. Without --beir, the documents are those of
corpus pydocs. The static model is compared with sentence-transformers' StaticEmbedding, and with model2vec if it is
installed.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dream.utils.runtime  # noqa: F401  before torch and numpy, as in every command

# isort: split
import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from dream.corpora.jsonl import JsonlCorpus
from dream.encoders.base import Encoder
from dream.encoders.static import StaticEncoder
from dream.indexes.embedding import embed_corpus, open_shard
from dream.store.build import open_or_build_passages
from dream.store.store import ENCODER
from dream.utils.logging import get_logger
from dream.utils.runtime import CONFIG_DIR, has_fast_bfloat16
from side_by_side import Row, alternate, product_peak, read_bandwidth, record, wait_for

log = get_logger(__name__)

TOKENS = 128  # of a document, with special tokens


def documents_of(folder: Path | None, count: int) -> list[str]:
    """The first texts of a BEIR folder, or of corpus pydocs."""
    if folder:
        with (folder / "corpus.jsonl").open(encoding="utf-8") as lines:
            rows = [json.loads(line) for _, line in zip(range(count), lines, strict=False)]
        return [f"{row.get('title', '')} {row['text']}".strip() for row in rows]
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"), tempfile.TemporaryDirectory() as cache:
        corpus = instantiate(compose("train", [f"corpus.cache_dir={cache}"]).corpus)
        return [document.text for _, document in zip(range(count), corpus.documents(), strict=False)]


def first_tokens(texts: list[str], model: str) -> list[str]:
    """The texts, each cut after as many tokens as the models read."""
    from transformers import AutoTokenizer

    offsets = AutoTokenizer.from_pretrained(model)(texts, add_special_tokens=False, return_offsets_mapping=True)
    ends = [places[: TOKENS - 2][-1][1] if places else 0 for places in offsets["offset_mapping"]]
    return [text[:end] for text, end in zip(texts, ends, strict=True) if end]


class Ours:
    """From a JSONL file to shards on disk. `embeddings` are those of the last call, in the order of the documents."""

    def __init__(
        self, encoder: Encoder, texts: list[str], scratch: Path, tokens: int, batch: int, device: str = "cpu",
        mixed: bool = False,
    ) -> None:  # fmt: skip
        self.encoder, self.scratch, self.tokens, self.batch = encoder.to(device), scratch, tokens, batch
        self.device, self.mixed = device, mixed
        self.file, self.forward_seconds = scratch / "corpus.jsonl", 0.0
        encoder.forward = self._timed(encoder.forward)  # type: ignore[method-assign]
        rows = ({"_id": str(number), "text": text} for number, text in enumerate(texts))
        self.file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def _timed(self, forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def timed(*arguments: Any) -> torch.Tensor:
            start = time.perf_counter()
            embedding_BD = forward(*arguments)
            wait_for(self.device)
            self.forward_seconds += time.perf_counter() - start
            return embedding_BD

        return timed

    def __call__(self) -> None:
        self.forward_seconds = 0.0
        start = time.perf_counter()
        for name in ("stores", "shards"):
            shutil.rmtree(self.scratch / name, ignore_errors=True)
        corpus = JsonlCorpus("bench", str(self.file), "_id", "title", ["text"], False, None, None, "error", 32, None)
        self.store = open_or_build_passages(
            self.scratch / "stores", corpus, self.encoder.tokenizer, passage_tokens=self.tokens, passages_per_document=1
        )
        shards = self.scratch / "shards"
        shards.mkdir()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.mixed):
            names = embed_corpus(shards, self.encoder, self.store, self.device, self.batch, 65_536, "bench")
        self.outside = 1 - self.forward_seconds / (time.perf_counter() - start)
        self.embeddings = np.concatenate([open_shard(shards / name) for name in names])


class Peer:
    """`encode` of a model of sentence-transformers or model2vec."""

    def __init__(self, model: Any, texts: list[str], **options: Any) -> None:
        self.model, self.texts, self.options = model, texts, options

    def __call__(self) -> None:
        self.embeddings = self.model.encode(self.texts, **self.options)


def lowest_cosine(first_ND: np.ndarray, second_ND: np.ndarray) -> float:
    first_ND, second_ND = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (np.float32(first_ND), second_ND))
    return float((first_ND * second_ND).sum(1).min())


def transformer(name: str, texts: list[str], scratch: Path, device: str) -> list[Row]:
    """Float32 and bfloat16 against sentence-transformers with its defaults and with bfloat16.

    In bf16-mixed, as a refresh has it with trainer.precision=bf16-mixed, the weights are float32 and products bfloat16.
    """
    from sentence_transformers import SentenceTransformer

    types = ["float32", *(["bf16-mixed", "bfloat16"] if has_fast_bfloat16(device) else [])]
    batch = 64 if device == "cpu" else 512
    runs: dict[str, Any] = {}
    for dtype in types:
        mixed = dtype == "bf16-mixed"
        weights = "float32" if mixed else dtype
        encoder = instantiate(OmegaConf.load(CONFIG_DIR / "encoder" / "hf.yaml"), name=name, dtype=weights)
        folder = scratch / dtype
        folder.mkdir()
        runs[f"dream {dtype}"] = Ours(encoder.eval(), texts, folder, TOKENS - 2, batch, device, mixed)
        if mixed:
            continue
        model = SentenceTransformer(name, device=device, model_kwargs={"torch_dtype": getattr(torch, dtype)})
        model.max_seq_length = TOKENS
        options = {"show_progress_bar": False} | ({} if dtype == "float32" else {"batch_size": batch})
        runs[f"sentence-transformers {dtype}"] = Peer(model, texts, **options)
    seconds = alternate(runs)
    rate = {run: f"{len(texts) / value:,.0f} documents/s" for run, value in seconds.items()}
    peer, best = "sentence-transformers float32", min(value for run, value in seconds.items() if run[:5] != "dream")
    ours = runs["dream float32"]
    tokens = np.diff(ours.store.passages["tokens"][:, ENCODER], axis=1) + 2
    matrices = sum(p.numel() for n, p in ours.encoder.named_parameters() if p.ndim == 2 and "embeddings" not in n)
    flop = 2 * matrices * int(tokens.sum())
    rows = []
    for dtype in types:
        products = "float32" if dtype == "float32" else "bfloat16"
        took, peak = seconds[f"dream {dtype}"], product_peak(getattr(torch, products), device=device)
        cosine = lowest_cosine(runs[f"dream {dtype}"].embeddings, runs[peer].embeddings)
        outside = runs[f"dream {dtype}"].outside
        floor = (f"{flop / took / peak:.0%} of the {products} matrix products' {peak / 1e9:,.0f} GFLOP/s; "
                 f"{outside:.0%} outside the forward passes; cosine ≥ {cosine:.5f}")  # fmt: skip
        rows.append(Row(f"embedding {len(texts):,} documents, {Path(name).name}, {dtype}", rate[f"dream {dtype}"],
                        f"its default: {rate[peer]}", seconds[peer] / took, 1.0 if dtype == "float32" else 3.0,
                        floor=floor))  # fmt: skip
        if dtype == "bfloat16":
            own = f"sentence-transformers {dtype}"
            rows.append(Row(f"… {dtype} on both sides", rate[f"dream {dtype}"], f"its best: {rate[own]}",
                            best / took, 1.1))  # fmt: skip
    return rows


def static(texts: list[str], scratch: Path) -> list[Row]:
    """A random table of 30,000 tokens × 256, in all libraries the same."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding
    from transformers import AutoTokenizer

    encoder = StaticEncoder(TOKENS, 0, 1.0, 0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    encoder.adopt_tokenizer(tokenizer)
    table_VD = torch.randn(len(tokenizer), 256)
    encoder._set(table_VD, torch.ones(len(table_VD)))
    module = StaticEmbedding(tokenizer._tokenizer, embedding_weights=table_VD.numpy())
    runs: dict[str, Any] = {
        "dream": Ours(encoder, texts, scratch, TOKENS, 512),
        "StaticEmbedding": Peer(SentenceTransformer(modules=[module], device="cpu"), texts, show_progress_bar=False),
    }
    try:
        from model2vec import StaticModel

        runs["model2vec"] = Peer(StaticModel(table_VD.numpy(), tokenizer._tokenizer), texts, max_length=TOKENS)
    except ImportError:
        log.info("model2vec is not installed: pip install model2vec")
    seconds = alternate(runs)
    peer = min((run for run in runs if run != "dream"), key=lambda run: seconds[run])
    forward = alternate({"shards": lambda: embed_again(runs["dream"])})["shards"]
    read = int(np.diff(runs["dream"].store.passages["tokens"][:, ENCODER], axis=1).sum()) * 256 * 4
    floor = (f"without tokenising {len(texts) / forward:,.0f} documents/s: {read / forward / read_bandwidth():.0%} of "
             "the memory's bandwidth")  # fmt: skip
    rates = {run: f"{len(texts) / value:,.0f} documents/s" for run, value in seconds.items()}
    return [Row(f"embedding {len(texts):,} documents, static table 30,000 × 256", rates["dream"],
                f"{peer}: {rates[peer]}", seconds[peer] / seconds["dream"], 1.0, floor=floor)]  # fmt: skip


def embed_again(ours: Ours) -> None:
    shutil.rmtree(ours.scratch / "shards")
    (ours.scratch / "shards").mkdir()
    embed_corpus(ours.scratch / "shards", ours.encoder, ours.store, "cpu", ours.batch, 65_536, "bench")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a sentence-transformers model")
    parser.add_argument("--beir", type=Path, help="folder in BEIR's layout; default: corpus pydocs")
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda: only the transformer")
    options = parser.parse_args()
    found = first_tokens(documents_of(options.beir, options.documents), options.model)
    with tempfile.TemporaryDirectory() as temporary:
        on_gpu = "" if options.device == "cpu" else "_gpu"
        record(f"embedding{on_gpu}", transformer(options.model, found, Path(temporary), options.device))
    if not on_gpu:
        with tempfile.TemporaryDirectory() as temporary:
            record("embedding_static", static(found * (20_000 // len(found)), Path(temporary)))
