"""Attention weighted by passages, in six families of models. Run: pytest tests/scorers/attention/test_injection.py"""

import numpy as np
import pytest
import torch
from tests.random_models import SCORING, save_random_model
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from dream.scorers.attention.injection import InBatchAttention, injectable, reweigh
from dream.scorers.candidate_scores import CandidateScores
from dream.scorers.hf import HFScorer
from dream.store.store import SCORER
from dream.utils.errors import ConfigError
from dream.utils.timing import Timer

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = SMALL | {"num_key_value_heads": 2}
FAMILIES = {
    "llama": lambda v: LlamaForCausalLM(LlamaConfig(vocab_size=v, max_position_embeddings=256, **SMALL)),
    "qwen3": lambda v: Qwen3ForCausalLM(
        Qwen3Config(vocab_size=v, max_position_embeddings=256, head_dim=8, **GROUPED)
    ),
    "mistral": lambda v: MistralForCausalLM(
        MistralConfig(vocab_size=v, max_position_embeddings=256, sliding_window=64, **GROUPED)
    ),
    # Its attention scores are capped, and half of its layers have a sliding window.
    "gemma2": lambda v: Gemma2ForCausalLM(
        Gemma2Config(vocab_size=v, head_dim=8, sliding_window=64, max_position_embeddings=256, **GROUPED)
    ),
    "gpt_neox": lambda v: GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=v, max_position_embeddings=256, **SMALL)),
    # Short convolutions between the layers with attention, as in the scratch scorer.
    "lfm2": lambda v: Lfm2ForCausalLM(
        Lfm2Config(vocab_size=v, max_position_embeddings=256, layer_types=["conv", "full_attention"],
                   block_auto_adjust_ff_dim=False, **GROUPED)
    ),
}  # fmt: skip
WINDOWS = torch.tensor([0, 31])
CANDIDATES = torch.tensor([[30, 40, 50], [3, 60, 9]])


@pytest.fixture(scope="module", params=list(FAMILIES))
def scorer(request, tokenizer, store, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    save_random_model(FAMILIES[request.param](len(tokenizer)), tokenizer, folder)
    scorer = HFScorer(None, str(folder), SCORING, False, cache_megabytes=0)
    scorer.load(store)
    return scorer


@pytest.fixture
def scores(scorer, store):
    return CandidateScores(scorer, store, WINDOWS, CANDIDATES, Timer())


def attention_layers(scorer) -> list[int]:
    types = getattr(scorer.model.config, "layer_types", None) or ["full_attention"] * 2
    return [layer for layer, kind in enumerate(types) if kind != "conv"]


def every_head(scorer) -> dict[int, list[int]]:
    return {layer: [0, 1, 2, 3] for layer in attention_layers(scorer)}


@torch.no_grad()
def stock_loglik(scorer, store, window, passage_ids):
    """Mean log p of the target's tokens after all passages, by the unchanged model in one forward."""
    context, target = store.window_tokens(window, SCORER)
    passages = [scorer.passage(store, passage_id) for passage_id in passage_ids]
    ids = torch.from_numpy(scorer.prompt.join_passages(passages, context, target))
    logits = scorer.model(input_ids=ids[None], use_cache=False).logits[0, -len(target) - 1 : -1]
    return logits.log_softmax(1).gather(1, ids[-len(target) :, None]).mean()


def test_reweigh_by_hand():
    """Attention (.2, .1, .3, .4) on passage 0, passage 0, passage 1 and outside; weights (3/4, 1/4); M = .6.

    keep: passage 0 gets .45, two thirds of it on its first token, passage 1 gets .15. full: .75 and .25.
    """
    attention = torch.tensor([[[0.2, 0.1, 0.3, 0.4]]])
    owner, weights = torch.tensor([0, 0, 1, -1]), torch.tensor([0.75, 0.25])
    torch.testing.assert_close(reweigh(attention, owner, weights, "keep"), torch.tensor([[[0.3, 0.15, 0.15, 0.4]]]))
    torch.testing.assert_close(reweigh(attention, owner, weights, "full"), torch.tensor([[[0.5, 0.25, 0.25, 0.4]]]))


def test_a_passage_that_a_row_cannot_attend_to_has_no_attention_and_no_gradient():
    attention = torch.tensor([[[0.0, 0.6, 0.4]]], requires_grad=True)
    weights = torch.tensor([0.5, 0.5], requires_grad=True)
    changed = reweigh(attention, torch.tensor([0, 1, -1]), weights, "keep")
    torch.testing.assert_close(changed.detach(), torch.tensor([[[0.0, 0.3, 0.4]]]))
    (1e6 * changed).sum().backward()
    assert attention.grad.isfinite().all()
    assert weights.grad.tolist()[0] == 0


def test_the_encoders_autocast_does_not_change_the_log_likelihoods(scorer, store):
    expected = scorer.loglik(store, WINDOWS, CANDIDATES)
    weights = torch.full((2, 3), 1 / 3)
    weighted_S = CandidateScores(scorer, store, WINDOWS, CANDIDATES, Timer()).weighted(
        weights, every_head(scorer), "keep"
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(scorer.loglik(store, WINDOWS, CANDIDATES), expected)
        scores = CandidateScores(scorer, store, WINDOWS, CANDIDATES, Timer())
        assert torch.equal(scores.weighted(weights, every_head(scorer), "keep"), weighted_S)


def test_weights_equal_to_the_heads_own_shares_change_nothing():
    attention = torch.rand(3, 5, 10).softmax(-1)
    owner = torch.tensor([-1, 0, 0, 0, 1, 1, 2, 2, 2, -1])
    own = torch.stack([attention[..., owner == k].sum(-1) for k in range(3)], dim=-1)
    torch.testing.assert_close(reweigh(attention, owner, own / own.sum(-1, keepdim=True), "keep"), attention)


def test_a_single_passage_with_weight_1_gives_the_models_own_logits(scorer, store):
    """The passage's mass is then the head's own, in every head of every layer."""
    scores = CandidateScores(scorer, store, WINDOWS, CANDIDATES[:, :1], Timer())
    loglik = scores.weighted(torch.ones(2, 1), every_head(scorer), "keep")
    expected = [
        stock_loglik(scorer, store, window, ids[:1]) for window, ids in zip([0, 31], CANDIDATES.tolist(), strict=True)
    ]
    torch.testing.assert_close(loglik, torch.stack(expected), atol=1e-5, rtol=0)


def test_weights_equal_to_own_shares_in_all_heads_give_the_models_own_logits(scorer, store, monkeypatch):
    """Three passages; the weights of each row are the shares of attention that the head itself gives them."""

    def own_shares(attention_HRT, owner_T, weights_K, mass):
        own = torch.stack([attention_HRT[..., owner_T == k].sum(-1) for k in range(3)], dim=-1)
        shares = own / own.sum(-1, keepdim=True).clamp_min(1e-30)
        return reweigh(attention_HRT, owner_T, shares + 0 * weights_K, mass)

    monkeypatch.setattr("dream.scorers.attention.injection.reweigh", own_shares)
    scores = CandidateScores(scorer, store, WINDOWS, CANDIDATES, Timer())
    loglik = scores.weighted(torch.full((2, 3), 1 / 3), every_head(scorer), "keep")
    expected = [
        stock_loglik(scorer, store, window, ids) for window, ids in zip([0, 31], CANDIDATES.tolist(), strict=True)
    ]
    torch.testing.assert_close(loglik, torch.stack(expected), atol=1e-5, rtol=0)


def test_without_a_chosen_head_the_weights_do_not_matter(scorer, store, scores):
    with pytest.raises(RuntimeError, match="grad"):  # nothing to differentiate
        scores.weighted(torch.full((2, 3), 1 / 3), {}, "keep")


def test_passages_without_weight_are_not_read_by_chosen_heads(scorer, store):
    """One-hot weights on the first passage: the chosen heads' target rows do not attend to the other passages.

    This is checked on the chosen heads' attention itself. The output of the model may still depend on the other
    passages, because the rows before the target attend to them as usual.
    """
    read = {}
    layer = attention_layers(scorer)[0]

    def spy(attention_HRT, owner_T, weights_K, mass):
        changed = reweigh(attention_HRT, owner_T, weights_K, mass)
        read["chosen"] = changed[..., owner_T == 0].sum(-1), attention_HRT[..., owner_T >= 0].sum(-1)
        read["others"] = changed[..., owner_T > 0].sum(-1)
        return changed

    import dream.scorers.attention.injection as attention

    before, attention.reweigh = attention.reweigh, spy
    try:
        CandidateScores(scorer, store, WINDOWS, CANDIDATES, Timer()).weighted(
            torch.tensor([[1.0, 0.0, 0.0]] * 2), {layer: [1, 2]}, "keep"
        )
    finally:
        attention.reweigh = before
    assert read["others"].abs().max() == 0
    visible = read["chosen"][0] > 0  # a sliding window can hide the first passage
    torch.testing.assert_close(read["chosen"][0][visible], read["chosen"][1][visible])


def test_gradient_reaches_the_weights_and_no_parameter(scorer, store):
    """Against finite differences, in float64."""
    model = scorer.model.double()
    try:
        scores = CandidateScores(scorer, store, WINDOWS, CANDIDATES, Timer())
        weights = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]], dtype=torch.float64, requires_grad=True)
        heads = {attention_layers(scorer)[-1]: [0, 3], attention_layers(scorer)[0]: [1]}
        [gradient] = torch.autograd.grad(scores.weighted(weights, heads, "keep").sum(), weights)
        assert gradient.abs().min() > 0
        # RMSNorm and rotary positions compute in float32 also in a float64 model; GPT-NeoX computes all in float64.
        step, off = (1e-5, 1e-6) if scorer.model.config.model_type == "gpt_neox" else (3e-3, 3e-3)
        for row, k in np.ndindex(2, 3):
            values = []
            for sign in (1, -1):
                moved = weights.detach().clone()
                moved[row, k] += sign * step
                values.append(float(scores.weighted(moved, heads, "keep").sum()))
            assert gradient[row, k].item() == pytest.approx((values[0] - values[1]) / 2 / step, rel=off, abs=off)
        assert all(weight.grad is None and not weight.requires_grad for weight in model.parameters())
    finally:
        model.float()


def test_texts_of_the_batch_with_weight_0_do_not_change_the_window(scorer, store):
    """With weights 0, the log-likelihood is that without passages; with positive weights, the texts matter."""
    scores = CandidateScores(scorer, store, WINDOWS, CANDIDATES, Timer())
    distinct = CANDIDATES.flatten()
    zero = scores.in_batch(torch.zeros(2, 6), distinct, True)
    weights = torch.full((2, 6), 1 / 6, requires_grad=True)
    together = scores.in_batch(weights, distinct, True)
    together.sum().backward()
    assert (zero - together).abs().min() > 1e-4
    assert weights.grad.abs().min() > 0
    null = scores.null_S / torch.tensor([len(store.window_tokens(w, SCORER)[1]) for w in (0, 31)])
    positions_matter = scorer.model.config.model_type in ("gemma2", "mistral")  # their windows slide by position
    torch.testing.assert_close(zero, null, atol=1e-3 if positions_matter else 1e-4, rtol=0)


def test_the_attention_implementation_is_restored(scorer):
    before = scorer.model.config._attn_implementation
    with injectable(scorer.model):
        assert scorer.model.config._attn_implementation == "dream"
    assert scorer.model.config._attn_implementation == before


def test_a_model_without_attention_interface_is_refused():
    bloom = BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(ConfigError, match="scorer=bloom"), injectable(bloom):
        pass


def test_in_batch_attention_by_hand():
    """One head of width 1, two texts. Own text: value 1. Text 1 has values 2 and 4 at equal scores: 3, norm 3; text 2
    has only the value -5, norm 5. Weights (3/4, 1/4): 1 + 3/4 · 3 - 1/4 · 5 = 2; by norm: 1 + 3/4 - 1/4 = 1.5."""
    texts = torch.zeros(2, 1, 2, 1), torch.tensor([[[[2.0], [4.0]]], [[[-5.0], [7.0]]]])
    mask = torch.tensor([[True, True], [True, False]])
    layer = torch.nn.Module()
    layer.layer_idx = 0
    for value_norm, expected in ((False, 2.0), (True, 1.5)):
        attend = InBatchAttention({0: texts}, mask, torch.tensor([0.75, 0.25]), value_norm)
        out = attend(layer, torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), None)
        assert out.item() == pytest.approx(expected)


def test_more_passages_than_the_model_has_positions_for_are_refused(scorer, store):
    scorer.require_room(store, 3, "candidates.k", 3)
    if scorer.most_tokens < 10_000:
        with pytest.raises(ConfigError, match="candidates.k"):
            scorer.require_room(store, 30, "candidates.k", 30)


def test_token_loglik_sums_to_the_loglik_and_is_0_at_padding(scorer, store):
    loglik_SKT, mask_ST = scorer.token_loglik(store, WINDOWS, CANDIDATES)
    torch.testing.assert_close(loglik_SKT.sum(2), scorer.loglik(store, WINDOWS, CANDIDATES), atol=1e-4, rtol=0)
    assert mask_ST.sum(1).tolist() == [len(store.window_tokens(window, SCORER)[1]) for window in (0, 31)]
    assert (loglik_SKT[~mask_ST[:, None].expand_as(loglik_SKT)] == 0).all()
    assert (loglik_SKT[mask_ST[:, None].expand_as(loglik_SKT)] < 0).all()


def test_loglik_without_k_is_that_of_the_other_passages(scorer, store):
    without_SK = scorer.loglik_without(store, WINDOWS, CANDIDATES)
    for row, window in enumerate((0, 31)):
        tokens = len(store.window_tokens(window, SCORER)[1])
        for left in range(3):
            others = [passage for k, passage in enumerate(CANDIDATES[row].tolist()) if k != left]
            expected = stock_loglik(scorer, store, window, others) * tokens
            torch.testing.assert_close(without_SK[row, left], expected, atol=1e-3, rtol=0)
