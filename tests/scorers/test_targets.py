"""What the language model is asked: continuation, context or both. Run: pytest tests/scorers/test_targets.py"""

import pytest
import torch
from tests.random_models import SCORING, save_random_model
from transformers import LlamaConfig, LlamaForCausalLM

from dream.scorers.candidate_scores import CandidateScores
from dream.scorers.hf import HFScorer
from dream.store.store import SCORER, Store
from dream.utils.errors import ConfigError
from dream.utils.timing import Timer

WINDOWS = torch.tensor([0, 7, 31])
CANDIDATES = torch.tensor([[3, -1, 40], [50, 51, 2], [-1, 60, 0]])
TARGETS = ("continuation", "context", "both")


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **sizes))
    return save_random_model(model, tokenizer, tmp_path_factory.mktemp("llama"))


def load(folder, store, cache_megabytes=0, **changes):
    scorer = HFScorer(None, folder, SCORING | changes, False, cache_megabytes)
    scorer.load(store)
    return scorer


@torch.no_grad()
def by_hand(scorer, store, window, passages, target):
    """log p of each target token, from one forward of the whole sequence."""
    context, continuation = (ids.tolist() for ids in store.window_tokens(window, SCORER))
    separator = scorer.tokenizer("\n\n", add_special_tokens=False)["input_ids"]
    ids = [scorer.tokenizer.bos_token_id]
    for passage in passages:
        ids += store.passage_tokens(passage, SCORER).tolist()[:16] if passage >= 0 else []
        ids += separator
    read, scored = {"continuation": (context, continuation), "context": ([], context),
                    "both": ([], context + continuation)}[target]  # fmt: skip
    whole = torch.tensor([ids + read + scored])
    log_p = scorer.model(whole).logits[0].log_softmax(1)
    first = len(ids) + len(read)
    return torch.stack([log_p[at - 1, whole[0, at]] for at in range(first, whole.shape[1])])


@pytest.mark.parametrize("target", TARGETS)
def test_log_likelihoods_equal_a_plain_computation(folder, store, target):
    asked = Store(store.path, target=target)
    scorer = load(folder, asked)
    loglik = scorer.loglik(asked, WINDOWS, CANDIDATES)
    by_token, mask = scorer.token_loglik(asked, WINDOWS, CANDIDATES)
    without = scorer.loglik_without(asked, WINDOWS, CANDIDATES.abs())
    for s, window in enumerate(WINDOWS.tolist()):
        for k, passage in enumerate(CANDIDATES[s].tolist()):
            expected = by_hand(scorer, store, window, [passage], target)
            assert loglik[s, k].item() == pytest.approx(expected.sum().item(), rel=1e-4)
            torch.testing.assert_close(by_token[s, k][mask[s]], expected, rtol=1e-4, atol=1e-5)
            others = [other for at, other in enumerate(CANDIDATES[s].abs().tolist()) if at != k]
            left = by_hand(scorer, store, window, others, target).sum().item()
            assert without[s, k].item() == pytest.approx(left, rel=1e-4)


@pytest.mark.parametrize("target", TARGETS)
def test_attention_to_a_single_passage_equals_a_plain_computation(folder, store, target):
    """With a single passage of weight 1, the heads' attention is not changed."""
    asked = Store(store.path, target=target)
    scorer = load(folder, asked)
    alone_S1 = CANDIDATES[:, 1:2].abs()
    heads = {layer: [0, 1, 2, 3] for layer in (0, 1)}
    scores = CandidateScores(scorer, asked, WINDOWS, alone_S1, Timer())
    found = scores.weighted(torch.ones(3, 1, requires_grad=True), heads, "keep")
    for s, window in enumerate(WINDOWS.tolist()):
        expected = by_hand(scorer, store, window, alone_S1[s].tolist(), target).mean().item()
        assert found[s].item() == pytest.approx(expected, rel=1e-4)
    weights = torch.full((3, 4), 0.25, requires_grad=True)
    scores.in_batch(weights, torch.tensor([3, 40, 50, 60]), True).sum().backward()
    assert weights.grad.abs().sum() > 0


def test_targets_never_share_cached_log_likelihoods(folder, tmp_path, store, monkeypatch):
    monkeypatch.setattr(Store, "cache_folder", lambda self, kind: tmp_path / kind)
    stores = [Store(store.path, target=target) for target in TARGETS]
    exact = [load(folder, asked).loglik(asked, WINDOWS, CANDIDATES) for asked in stores]
    scorers = [load(folder, asked, cache_megabytes=10) for asked in stores]
    for _ in range(2):  # computed, then found
        for scorer, asked, expected in zip(scorers, stores, exact, strict=True):
            assert torch.equal(scorer.loglik(asked, WINDOWS, CANDIDATES), expected)
    assert [scorer.pairs_scored for scorer in scorers] == [CANDIDATES.numel()] * 3
    one = scorers[0]  # one scorer with several stores
    for asked, expected in zip(stores, exact, strict=True):
        assert torch.equal(one.loglik(asked, WINDOWS, CANDIDATES), expected)


def test_a_template_must_have_something_before_the_context(folder, store):
    bare = {"template": ["{passage}", "{context}"]}
    load(folder, store, **bare)
    with pytest.raises(ConfigError, match=r"scorer.scoring.template=.* data.target=context") as refusal:
        load(folder, Store(store.path, target="context"), **bare)
    assert "\n" not in str(refusal.value)
