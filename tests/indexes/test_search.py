"""Both indexes find the same passages in the same order, and report what cannot be built.

pytest tests/indexes/test_search.py
"""

import math

import faiss
import numpy as np
import pytest
import torch

from dream.indexes.exact import ExactIndex
from dream.indexes.faiss import FaissIndex
from dream.utils.errors import ConfigError


def flat() -> FaissIndex:
    return FaissIndex("Flat", {})


def in_chunks(embeddings_ND: np.ndarray, rows: int) -> list[np.ndarray]:
    return [embeddings_ND[start : start + rows] for start in range(0, len(embeddings_ND), rows)]


def built(index, embeddings_ND: np.ndarray, rows: int = 10_000):
    index.build(in_chunks(embeddings_ND, rows), *embeddings_ND.shape)
    return index


def clusters(count: int, width: int, seed: int = 0) -> np.ndarray:
    """Unit vectors around 20 centres, float16; the centres are the same for each seed."""
    centres = np.random.default_rng(99).normal(size=(20, width))
    random = np.random.default_rng(seed)
    rows = centres[random.integers(20, size=count)] + 0.5 * random.normal(size=(count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


INDEXES = [flat, lambda: ExactIndex(7, True), lambda: ExactIndex(10_000, False)]


@pytest.mark.parametrize("make", INDEXES)
def test_known_neighbours(make) -> None:
    """By hand: similarities of the query (1, 0) are 0, 1, 0.5, 1, −1, so the order is 1 and 3 (tied), 2, 0, 4."""
    rows = np.array([[0, 1], [1, 0], [0.5, 0], [1, 0.5], [-1, 0]], dtype=np.float16)
    index = built(make(), rows, rows=2)
    sim_QK, ids_QK = index.search(torch.tensor([[1.0, 0.0]]), 5)
    assert ids_QK.tolist() == [[1, 3, 2, 0, 4]]
    assert sim_QK.tolist() == [[1.0, 1.0, 0.5, 0.0, -1.0]]
    assert (sim_QK.dtype, ids_QK.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize("make", INDEXES)
def test_pads_if_k_exceeds_the_corpus(make) -> None:
    index = built(make(), np.eye(3, dtype=np.float16))
    sim_QK, ids_QK = index.search(torch.eye(3)[:2], 5)
    assert ids_QK.tolist() == [[0, 1, 2, -1, -1], [1, 0, 2, -1, -1]]
    assert sim_QK[:, 3:].tolist() == [[-math.inf] * 2] * 2


@pytest.mark.parametrize("make", INDEXES)
def test_no_queries(make) -> None:
    sim_QK, ids_QK = built(make(), np.eye(3, dtype=np.float16)).search(torch.empty(0, 3), 2)
    assert sim_QK.shape == ids_QK.shape == (0, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_flat_equals_torch(dtype: torch.dtype) -> None:
    embeddings = clusters(3000, 24)
    query_QD = torch.randn(50, 24, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    sim_faiss, ids_faiss = built(flat(), embeddings, 700).search(query_QD, 20)
    sim_torch, ids_torch = built(ExactIndex(450, True), embeddings, 700).search(query_QD, 20)
    torch.testing.assert_close(sim_faiss, sim_torch, rtol=1e-5, atol=1e-5)
    assert torch.equal(ids_faiss, ids_torch)


@pytest.mark.parametrize("k", [1, 3, 10, 60, 150, 400])
def test_ties_go_to_the_lower_id(k: int) -> None:
    """Coordinates are small integers, so that products are exact and most similarities are shared by dozens of rows.

    The expected order is a full sort by (−similarity, id), also if several passages equal the k-th.
    """
    random = np.random.default_rng(0)
    embeddings = random.integers(-1, 2, size=(300, 4)).astype(np.float16)
    query = random.integers(-1, 2, size=(20, 4)).astype(np.float32)
    query[0] = 0  # all 300 are equally similar
    sims = query @ embeddings.astype(np.float32).T
    expected = np.stack([np.lexsort((np.arange(300), -row)) for row in sims])[:, :k]
    for index in (built(flat(), embeddings), built(ExactIndex(64, True), embeddings, 50)):
        _, ids_QK = index.search(torch.from_numpy(query), k)
        assert np.array_equal(ids_QK.numpy()[:, :300], expected), type(index)
        assert (ids_QK[:, 300:] == -1).all()


def test_torch_ignores_autocast_and_matmul_precision() -> None:
    """Otherwise a bf16 trainer would search with 8 bits of mantissa."""
    embeddings = clusters(500, 64)
    query_QD = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    index = built(ExactIndex(100, True), embeddings)
    expected = query_QD.double() @ torch.from_numpy(embeddings).double().T
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            sim_QK, _ = index.search(query_QD, 10)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(sim_QK.double(), expected.topk(10).values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("factory", "search_params", "at_least"),
    [
        ("IVF20,Flat", {"nprobe": 4}, 0.95),
        ("HNSW16", {"efSearch": 64}, 0.95),
        ("PQ16", {}, 0.55),  # a code of 16 bytes for 32 dimensions; chance is 0.0025
        pytest.param("OPQ8,PQ8", {}, 0.3, marks=pytest.mark.slow),
        ("IVF8,PQ16", {"nprobe": 8}, 0.65),
    ],
)
def test_approximate_recall(factory: str, search_params: dict, at_least: float) -> None:
    embeddings = clusters(4000, 32)
    query_QD = torch.from_numpy(clusters(50, 32, seed=1).astype(np.float32))
    _, exact = built(flat(), embeddings).search(query_QD, 10)
    _, found = built(FaissIndex(factory, search_params), embeddings, 900).search(query_QD, 10)
    recall = (exact[:, :, None] == found[:, None, :]).any(2).float().mean().item()
    assert recall >= at_least


def test_search_params_matter() -> None:
    """One list of twenty has fewer than 100 passages: the rest of the ids is −1."""
    embeddings = clusters(200, 32)
    query_QD = torch.from_numpy(embeddings[:5].astype(np.float32))
    _, one = built(FaissIndex("IVF20,Flat", {"nprobe": 1}), embeddings).search(query_QD, 100)
    _, all_ = built(FaissIndex("IVF20,Flat", {"nprobe": 20}), embeddings).search(query_QD, 100)
    assert (one == -1).any(1).all()
    assert (all_ >= 0).all()
    sim_QK, ids_QK = built(FaissIndex("IVF20,Flat", {"nprobe": 1}), embeddings).search(query_QD, 100)
    assert torch.equal(sim_QK == -math.inf, ids_QK == -1)


def test_save_and_load(tmp_path) -> None:
    embeddings = clusters(500, 16)
    query_QD = torch.from_numpy(embeddings[:9].astype(np.float32))
    for make in (lambda: FaissIndex("IVF8,Flat", {"nprobe": 8}), flat, lambda: ExactIndex(100, True)):
        index = built(make(), embeddings)
        index.save(tmp_path)
        again = make()
        again.load(tmp_path, [embeddings])
        for ours, theirs in zip(index.search(query_QD, 7), again.search(query_QD, 7), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("factory", "search_params", "message"),
    [
        ("Flatt", {}, r"^index\.factory=Flatt: FAISS cannot build it for width 10: .*; try Flat"),
        ("PQ4x6", {}, r"^index\.factory=PQ4x6: .*10"),
        ("IVF600,Flat", {}, r"^index\.factory=IVF600,Flat: 500 of 500 passages are too few to train it \(.*600"),
        ("Flat", {"nprobe": 3}, r"^index\.search_params\.nprobe=3: index\.factory=Flat has no such parameter"),
    ],
)
def test_bad_values_are_named(factory: str, search_params: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        built(FaissIndex(factory, search_params), clusters(500, 10))
    assert "\n" not in str(raised.value)
    assert "/faiss/" not in str(raised.value)


def test_training_sample_is_bounded(monkeypatch) -> None:
    """100 of 1,000 points cannot train 200 lists, although 1,000 could."""
    monkeypatch.setattr("dream.indexes.faiss.TRAIN_POINTS", 100)
    with pytest.raises(ConfigError, match="100 of 1,000 passages are too few"):
        built(FaissIndex("IVF200,Flat", {}), clusters(1000, 8), 33)


@pytest.mark.skipif(not hasattr(faiss, "IndexFlatIPPanorama"), reason="this version of FAISS has no such index")
def test_a_flat_index_with_another_arrangement_of_rows():
    embeddings = clusters(1000, 16)
    query_QD = torch.from_numpy(embeddings[:5]).float()
    expected_QK = built(flat(), embeddings).search(query_QD, 3)[1]
    assert torch.equal(built(FaissIndex("FlatIPPanorama4", {}), embeddings).search(query_QD, 3)[1], expected_QK)


@pytest.mark.parametrize("factory", ["IDMap,Flat", "IVF4,IDMap,Flat"])
def test_an_index_with_ids_of_its_own_is_refused_before_anything_is_embedded(factory):
    with pytest.raises(ConfigError, match=f"index.factory={factory}: leave IDMap out"):
        FaissIndex(factory, None)
