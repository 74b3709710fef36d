"""Codes in memory and exact re-ranking from the files. Run: pytest tests/indexes/test_ivfpq.py"""

import copy

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from dream.indexes import ivfpq
from dream.indexes.exact import ExactIndex
from dream.indexes.ivfpq import IVFPQIndex, lists_for
from dream.utils.errors import ConfigError
from dream.utils.runtime import CONFIG_DIR


def clusters(count: int, width: int, seed: int = 0, noise: float = 0.5) -> list[np.ndarray]:
    """Unit vectors around 20 centres, float16, in chunks of 1,000."""
    centres = np.random.default_rng(99).normal(size=(20, width))
    random = np.random.default_rng(seed)
    rows = centres[random.integers(20, size=count)] + noise * random.normal(size=(count, width))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    return [rows[start : start + 1000] for start in range(0, count, 1000)]


@pytest.fixture(autouse=True)
def few_are_enough(monkeypatch):
    monkeypatch.setattr(ivfpq, "FEWEST", 2000)


def built(chunks: list[np.ndarray], rerank: int = 10, probes: int = 1000, index=None) -> IVFPQIndex:
    index = copy.copy(index) if index else IVFPQIndex("IVF{lists},PQ8", {"nprobe": probes}, rerank)
    index.build(chunks, sum(map(len, chunks)), chunks[0].shape[1])
    return index


def queries(width: int = 16) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(clusters(70, width, seed=5)).astype(np.float32))


def test_the_best_passages_are_compared_exactly():
    chunks = clusters(4500, 16)
    index = built(chunks)
    exact = ExactIndex(1000, False)
    exact.build(chunks, 0, 0)
    sim_QK, ids_QK = index.search(queries(), 100)
    true_sim_QK, true_QK = exact.search(queries(), 100)
    both = [len(set(a) & set(b)) for a, b in zip(ids_QK.tolist(), true_QK.tolist(), strict=True)]
    assert np.mean(both) >= 95
    torch.testing.assert_close(sim_QK[:, 0], true_sim_QK[:, 0], rtol=1e-5, atol=1e-6)
    assert torch.equal(ids_QK[:, 0], true_QK[:, 0])
    assert (sim_QK.diff(dim=1) <= 0).all()
    assert (sim_QK.dtype, ids_QK.dtype) == (torch.float32, torch.int64)


def test_all_passages_compared_are_the_exact_result():
    chunks = clusters(2500, 16)
    _sim_QK, ids_QK = built(chunks, rerank=2500).search(queries(), 10)
    exact = ExactIndex(1000, False)
    exact.build(chunks, 0, 0)
    assert torch.equal(ids_QK, exact.search(queries(), 10)[1])


def test_results_that_the_lists_do_not_have_are_padded():
    sim_QK, ids_QK = built(clusters(2500, 16), probes=1).search(queries()[:3], 2400)
    assert (ids_QK[:, -1] == -1).all()
    assert sim_QK[:, -1].isinf().all()
    assert (ids_QK[:, 0] >= 0).all()


def test_no_queries():
    sim_QK, ids_QK = built(clusters(2500, 16)).search(torch.empty(0, 16), 4)
    assert sim_QK.shape == ids_QK.shape == (0, 4)


def test_a_loaded_index_is_the_saved_one_and_so_is_the_next_build(tmp_path):
    chunks, later = clusters(2500, 16), clusters(2500, 16, seed=1)
    index = built(chunks)
    index.save(tmp_path)
    loaded = IVFPQIndex("IVF{lists},PQ8", {"nprobe": 1000}, 10)
    loaded.load(tmp_path, chunks)
    for one, other in ((index, loaded), (built(later, index=index), built(later, index=loaded))):
        for a, b in zip(one.search(queries(), 20), other.search(queries(), 20), strict=True):
            assert torch.equal(a, b)


def test_centroids_are_trained_again_only_if_the_embeddings_have_changed(monkeypatch):
    trained = []
    train = IVFPQIndex._train
    monkeypatch.setattr(IVFPQIndex, "_train", lambda *args: (trained.append(1), train(*args))[1])
    index = built(clusters(2500, 16))
    same = built(clusters(2500, 16), index=index)
    assert len(trained) == 1
    built(clusters(2500, 16, seed=1, noise=3.0), index=same)
    assert len(trained) == 2
    assert index._index.ntotal == same._index.ntotal == 2500  # the old index is unchanged


def test_another_process_reuses_the_centroids_of_a_snapshot(monkeypatch, tmp_path):
    (tmp_path / "exact").mkdir()
    index = built(clusters(2500, 16))
    index.save(tmp_path)
    new = IVFPQIndex("IVF{lists},PQ8", {"nprobe": 1000}, 10)
    new.reuse(tmp_path / "exact")  # without centroids
    new.reuse(tmp_path)
    monkeypatch.setattr(IVFPQIndex, "_train", None)
    later = clusters(2500, 16)[::-1]
    for a, b in zip(
        built(later, index=new).search(queries(), 20), built(later, index=index).search(queries(), 20), strict=True
    ):
        assert torch.equal(a, b)


def test_few_passages_are_searched_exactly_in_one_line(capsys, tmp_path):
    chunks = clusters(300, 16)
    index = built(chunks)
    assert capsys.readouterr().out == "  300 passages are few: index=ivfpq searches fewer than 2,000 exactly\n"
    exact = ExactIndex(1000, False)
    exact.build(chunks, 0, 0)
    index.save(tmp_path)
    loaded = IVFPQIndex("IVF{lists},PQ8", {}, 10)
    loaded.load(tmp_path, chunks)
    for other in (exact, loaded):
        assert torch.equal(index.search(queries(), 20)[1], other.search(queries(), 20)[1])
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ConfigError, match=r"index.rerank=0: at least 1"):
        IVFPQIndex("IVF{lists},PQ8", {}, 0)
    with pytest.raises(ConfigError, match=r"index.factory=IVF\{lists\},PQ8: FAISS cannot build it for width 12"):
        built(clusters(2500, 12))
    index = IVFPQIndex("IVF9999,PQ8", {}, 1)
    with pytest.raises(ConfigError, match=r"index.factory=IVF9999,PQ8: .* too few to train it"):
        index.build(clusters(2500, 16), 2500, 16)


def test_the_config_and_the_numbers_of_lists():
    index = instantiate(OmegaConf.load(CONFIG_DIR / "index" / "ivfpq.yaml"))
    assert index.bytes_per_passage(512) == 72
    assert [lists_for(count) for count in (20_000, 62_000, 250_000, 10**6, 10**7, 10**9)] == [
        512, 1024, 2048, 4096, 16384, 65536
    ]  # fmt: skip
