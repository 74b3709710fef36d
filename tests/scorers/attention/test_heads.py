"""Ranking of heads by attention on the helpful passage. Run: pytest tests/scorers/attention/test_heads.py"""

import json

import numpy as np
import pytest
import torch
from tests.random_models import SCORING, save_random_model
from transformers import LlamaConfig, LlamaForCausalLM

from dream.commands.rank_heads import heat_map
from dream.indexes.bm25 import BM25Index
from dream.scorers.attention.heads import HeadFinder, RankedHeads, all_heads, choose_heads, passage_attention
from dream.scorers.hf import HFScorer
from dream.store.store import SCORER
from dream.utils.errors import ConfigError, DreamError

PASSAGES = SCORING | {"template": ["{bos}", "{passage}", "{sep}", "{context}"]}


@pytest.fixture(scope="module")
def scorer(tokenizer, store, tmp_path_factory):
    """Random weights, large enough that heads differ; its eager attention returns the probabilities."""
    folder = tmp_path_factory.mktemp("llama")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **sizes))
    save_random_model(model, tokenizer, folder)
    scorer = HFScorer(None, str(folder), PASSAGES, False, cache_megabytes=0)
    scorer.load(store)
    return scorer


@pytest.fixture
def finder():
    def make(**changes):
        settings = {
            "windows": 6,
            "scanned": 640,
            "candidates": 4,
            "gain": 0.02,
            "rows": "context",
            "uninformative": "N/A",
            "seed": 0,
        }
        return HeadFinder(**settings | changes)

    return make


@torch.no_grad()
def test_attention_on_passages_is_the_models_own(scorer, store):
    passages = [scorer.passage(store, passage_id) for passage_id in (5, 40, 77)]
    asked = store.window_tokens(3, SCORER)[0]
    ids = torch.from_numpy(scorer.prompt.join_passages(passages, asked))
    scorer.model.set_attn_implementation("eager")
    whole = scorer.model(input_ids=ids[None], output_attentions=True).attentions
    scorer.model.set_attn_implementation("sdpa")
    found = passage_attention(scorer, passages, asked)
    owner = torch.from_numpy(scorer.prompt.owners(passages, len(ids)))
    for layer, attention in enumerate(whole):
        rows = attention[0, :, -len(asked) :]
        expected = torch.stack([rows[..., owner == k].sum(-1).mean(-1) for k in range(3)], dim=1)
        torch.testing.assert_close(found[layer], expected, atol=1e-6, rtol=0)


def test_heads_are_ranked_once_then_read_from_the_cache(scorer, store, finder, monkeypatch):
    ranked = finder(seed=5).open_or_find(scorer, store)
    assert ranked.folder.parent == store.cache_folder("heads")
    assert {(layer, head) for layer, head, _ in ranked.rows} == set(all_heads(scorer))
    scores = [score for _, _, score in ranked.rows]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 8
    assert ranked.windows == 6
    assert json.loads((ranked.folder / "heads.json").read_text())["windows"] == 6
    monkeypatch.setattr(HeadFinder, "_find", lambda *_: pytest.fail("ranked a second time"))
    assert finder(seed=5).open_or_find(scorer, store).rows == ranked.rows


def test_the_score_is_the_attention_that_the_question_adds(scorer, store, finder):
    """One window: the score of a head from its attention with the context and with N/A."""
    one = finder(windows=1)
    [(layer, head, score)] = one.open_or_find(scorer, store).rows[:1]
    window, passage_ids, helpful = next(iter(one._helped(scorer, store, BM25Index.open_or_build(store))))
    loglik = scorer.loglik(store, torch.tensor([window]), torch.tensor([passage_ids]))[0]
    assert helpful == loglik.argmax()
    passages = [scorer.passage(store, passage_id) for passage_id in passage_ids]
    nothing = np.array(scorer.tokenizer("N/A", add_special_tokens=False)["input_ids"])
    asked = passage_attention(scorer, passages, store.window_tokens(window, SCORER)[0])[layer][head]
    added = (asked - passage_attention(scorer, passages, nothing)[layer][head]).tolist()
    others = [value for k, value in enumerate(added) if k != helpful]
    assert score == pytest.approx(added[helpful] - sum(others) / 3, abs=1e-7)


def test_a_scorer_that_no_passage_helps_is_reported(scorer, store, finder):
    with pytest.raises(DreamError, match="finder.gain=50"):
        finder(gain=50).open_or_find(scorer, store)


def test_heads_can_be_chosen_in_four_ways(scorer, store, finder):
    def chosen(heads, count=3, seed=0):
        by_layer = choose_heads(heads, count, seed, scorer, store, finder())
        return [(layer, head) for layer, heads in by_layer.items() for head in heads]

    ranked = finder().open_or_find(scorer, store).rows
    assert set(chosen("found")) == {(layer, head) for layer, head, _ in ranked[:3]}
    assert chosen("all") == all_heads(scorer)
    assert len(set(chosen("random"))) == 3
    assert chosen("random") == chosen("random")
    assert any(chosen("random", seed=seed) != chosen("random") for seed in range(1, 5))
    assert chosen([[1, 2], [0, 3]]) == [(1, 2), (0, 3)]
    with pytest.raises(ConfigError, match="objective.count=9: the model has 8 heads"):
        chosen("random", count=9)
    with pytest.raises(ConfigError, match="objective.heads"):
        chosen([])
    with pytest.raises(ConfigError, match=r"objective.heads=.*layer 1: 4 heads"):
        chosen([[7, 0]])


def test_the_heat_map_has_a_cell_for_every_head(tmp_path):
    ranked = RankedHeads([(3, 1, 0.2), (1, 0, 0.1), (3, 0, -0.3)], 5, tmp_path)
    scores, layers = ranked.matrix()
    assert layers == [1, 3]
    np.testing.assert_array_equal(scores, [[0.1, np.nan], [-0.3, 0.2]])
    axes = heat_map(ranked, "title").axes[0]
    assert axes.images[0].get_array().shape == (2, 2)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "3"]
