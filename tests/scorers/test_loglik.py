"""The scorer against a plain loop, one sequence and one token at a time. Run: pytest tests/scorers/test_loglik.py"""

import pytest
import torch
from tests.random_models import SCORING, save_random_model
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from dream.scorers.hf import HFScorer
from dream.store.store import SCORER
from dream.utils.errors import ConfigError

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    "llama": lambda v: LlamaForCausalLM(LlamaConfig(vocab_size=v, max_position_embeddings=128, **SMALL)),
    "qwen2": lambda v: Qwen2ForCausalLM(
        Qwen2Config(vocab_size=v, max_position_embeddings=128, num_key_value_heads=2, **SMALL)
    ),
    # Dropout 0.5: a model that is not in eval mode fails.
    "gpt2": lambda v: GPT2LMHeadModel(
        GPT2Config(vocab_size=v, n_positions=128, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.5, attn_pdrop=0.5)
    ),
    # Its logits are capped after the projection, and half of its layers have a sliding window.
    "gemma2": lambda v: Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=v, num_key_value_heads=2, head_dim=8, sliding_window=16, final_logit_softcapping=2.0, **SMALL
        )
    ),
}  # fmt: skip
WINDOWS = torch.tensor([0, 7, 31])
CANDIDATES = torch.tensor([[3, -1, 40, 41], [50, 51, 2, 9], [-1, 60, 0, 1]])


def save_model(family, tokenizer, folder):
    return save_random_model(FAMILIES[family](len(tokenizer)), tokenizer, folder)


@pytest.fixture(scope="module", params=list(FAMILIES))
def model_folder(request, tokenizer, tmp_path_factory):
    return save_model(request.param, tokenizer, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llama(tokenizer, tmp_path_factory):
    return save_model("llama", tokenizer, tmp_path_factory.mktemp("llama"))


def load(folder, store, **changes):
    scorer = HFScorer(corpus=None, name=folder, scoring=SCORING | changes, trust_remote_code=False, cache_megabytes=0)
    scorer.load(store)
    return scorer


@torch.no_grad()
def plain_loop(scorer, store, window, candidate, separator="\n\n", longest=16):
    """Sum of log p(token | everything before it), each from a forward of its own over one unpadded sequence."""
    context, target = (tokens.tolist() for tokens in store.window_tokens(window, SCORER))
    passage = store.passage_tokens(candidate, SCORER).tolist()[:longest] if candidate >= 0 else []
    literal = scorer.tokenizer(separator, add_special_tokens=False)["input_ids"]
    ids = [scorer.tokenizer.bos_token_id, *passage, *literal, *context]
    total = 0.0
    for token in target:
        logits = scorer.model(torch.tensor([ids])).logits[0, -1].double()
        total += torch.log_softmax(logits, 0)[token].item()
        ids.append(token)
    return total


@pytest.mark.parametrize("tokens_per_forward", [1, 130, 4096])
def test_equals_the_plain_loop_for_any_batch_size(model_folder, store, tokens_per_forward):
    scorer = load(model_folder, store, tokens_per_forward=tokens_per_forward)
    loglik = scorer.loglik(store, WINDOWS, CANDIDATES)
    expected = [
        [plain_loop(scorer, store, window, candidate) for candidate in candidates]
        for window, candidates in zip(WINDOWS.tolist(), CANDIDATES.tolist(), strict=True)
    ]
    assert loglik.dtype == torch.float32
    assert loglik.shape == CANDIDATES.shape
    torch.testing.assert_close(loglik, torch.tensor(expected), rtol=1e-4, atol=0)
    assert loglik.std(dim=1).min() > 1e-2  # the passages matter, so the agreement is not a coincidence


def test_order_of_the_pairs_does_not_matter(llama, store):
    scorer = load(llama, store, tokens_per_forward=100)
    straight = scorer.loglik(store, WINDOWS, CANDIDATES)
    flipped = scorer.loglik(store, WINDOWS.flip(0), CANDIDATES.flip(0, 1))
    torch.testing.assert_close(flipped.flip(0, 1), straight, rtol=1e-5, atol=0)


@pytest.mark.slow
def test_compiled_equals_eager(llama, store):
    compiled = load(llama, store, compile=True, tokens_per_forward=150)
    if not load(llama, store, compile="auto").compiles:
        pytest.skip("no C++ compiler")
    eager = load(llama, store).loglik(store, WINDOWS, CANDIDATES)
    torch.testing.assert_close(compiled.loglik(store, WINDOWS, CANDIDATES), eager, rtol=1e-5, atol=0)


def test_passages_are_cut_at_their_end(llama, store):
    scorer = load(llama, store, max_passage_tokens=3)
    expected = plain_loop(scorer, store, 7, 50, longest=3)
    assert scorer.loglik(store, torch.tensor([7]), torch.tensor([[50]])).item() == pytest.approx(expected, rel=1e-4)


def test_the_model_is_frozen(llama, store):
    scorer = load(llama, store)
    assert not scorer.model.training
    assert not any(weight.requires_grad for weight in scorer.model.parameters())
    assert not scorer.loglik(store, WINDOWS, CANDIDATES).requires_grad
    table = scorer.token_embeddings()
    table.zero_()
    assert scorer.model.get_input_embeddings().weight.abs().sum() > 0


def test_fingerprint_covers_what_the_log_likelihoods_depend_on(llama, store, tmp_path, tokenizer):
    same = [load(llama, store).fingerprint, load(llama, store, tokens_per_forward=7).fingerprint]
    assert same[0] == same[1]
    shorter = load(llama, store, max_passage_tokens=5)
    other_prompt = load(llama, store, template=["{passage}", "\n", "{context}"])
    other_weights = load(llama, store)
    with torch.no_grad():
        other_weights.model.lm_head.weight[0, 0] += 1
    other_weights.use(other_weights.model, store)
    assert len({same[0], shorter.fingerprint, other_prompt.fingerprint, other_weights.fingerprint}) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": ["{context}", "{passage}"]}, "last piece"),
        ({"template": ["{bos}", "{context}"]}, "must stand in it once"),
        ({"max_passage_tokens": 0}, "scorer.scoring.max_passage_tokens=0"),
        ({"max_passage_tokens": 500}, "the model reads 128"),
        ({"dtype": "int4"}, "scorer.scoring.dtype=int4"),
        ({"compile": "maybe"}, "scorer.scoring.compile=maybe"),
        ({"tokens_per_forward": 0}, "scorer.scoring.tokens_per_forward=0"),
    ],
)
def test_bad_values_name_their_key(llama, store, changes, message):
    with pytest.raises(ConfigError, match=message):
        load(llama, store, **changes)


def test_a_missing_model_is_reported_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"^scorer.name=.*cannot be loaded"):
        HFScorer(corpus=None, name=str(tmp_path / "none"), scoring=SCORING, trust_remote_code=False, cache_megabytes=0)


def test_a_negative_cache_size_is_refused(llama):
    with pytest.raises(ConfigError, match="scorer.cache_megabytes=-1"):
        HFScorer(corpus=None, name=llama, scoring=SCORING, trust_remote_code=False, cache_megabytes=-1)
