"""Pairs that share a passage, against pairs scored one by one. Run: pytest tests/scorers/test_packing.py"""

import numpy as np
import pytest
import torch
from tests.random_models import SCORING, save_random_model
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
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

from dream.scorers.batching import PairBatching
from dream.scorers.candidate_scores import CandidateScores
from dream.scorers.hf import HFScorer
from dream.scorers.int8 import eight_bit_problem
from dream.scorers.packing import Packing, can_pack
from dream.scorers.padding import Padding
from dream.utils import errors
from dream.utils.errors import ConfigError
from dream.utils.timing import Timer

VOCABULARY = 90
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 128}  # fmt: skip
GROUPED = SMALL | {"num_key_value_heads": 2, "head_dim": 8}
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**GROUPED)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=64)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**GROUPED, sliding_window=64, attn_logit_softcapping=2.0)),
    "gptneox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=128, n_embd=32, n_layer=2, n_head=4)),
}
LONGEST = 60
WINDOWS = torch.tensor([0, 7, 31])
CANDIDATES = torch.tensor([[3, -1, 40, 41], [3, 51, -1, 41], [-1, 3, 40, 51]])


def random_model(family):
    torch.manual_seed(0)
    model = FAMILIES[family]().eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.normal_(std=0.2)
    return model


@pytest.fixture(scope="module", params=list(FAMILIES))
def model(request):
    return random_model(request.param)


@pytest.fixture(scope="module")
def llama():
    return random_model("llama")


def draw_pairs(beginnings=(20, 7, 1, 0), windows=5, seed=0):
    """(sequences, targets, shared): each window after each beginning. Lengths are mixed; one target has no context."""
    draw = np.random.default_rng(seed)
    starts = [draw.integers(VOCABULARY, size=size) for size in beginnings]
    sequences, targets, shared = [], [], []
    for window in range(windows):
        target = int(draw.integers(1, 9))
        ending = draw.integers(VOCABULARY, size=target + (0 if window == 0 else int(draw.integers(1, 15))))
        for start in starts:
            if len(start) + len(ending) > target:
                sequences.append(np.concatenate([start, ending]))
                targets.append(target)
                shared.append(len(start))
    return sequences, targets, shared


def score(forwards, pairs, by_token=False, token_budget=4096):
    sequences, targets, shared = pairs
    parts = list(forwards.scores(sequences, targets, shared, by_token, token_budget))
    scores = torch.cat([scores for _, scores in parts])
    return scores[np.argsort(np.concatenate([pairs for pairs, _ in parts]))], parts


def padding(model):
    return Padding(model, PairBatching(most_tokens=128, longest_target=8), compiles=False)


def packing(model):
    return Packing(model, compiles=False)


@pytest.mark.parametrize("token_budget", [1, 64, 4096])
@pytest.mark.parametrize("by_token", [False, True])
def test_packed_equals_one_by_one_in_every_family(model, token_budget, by_token):
    assert can_pack(model, LONGEST)
    pairs = draw_pairs()
    packed, _ = score(packing(model), pairs, by_token, token_budget)
    expected, _ = score(padding(model), pairs, by_token)
    torch.testing.assert_close(packed, expected, rtol=1e-5, atol=1e-5)
    assert len(packed) == len(pairs[0])


def test_a_single_pair_and_pairs_that_share_nothing(llama):
    one = draw_pairs(beginnings=(9,), windows=1)
    torch.testing.assert_close(score(packing(llama), one)[0], score(padding(llama), one)[0], rtol=1e-5, atol=1e-5)
    sequences, targets, _ = draw_pairs()
    alone = sequences, targets, [0] * len(sequences)
    torch.testing.assert_close(score(packing(llama), alone)[0], score(padding(llama), alone)[0], rtol=1e-5, atol=1e-5)


def test_a_value_depends_on_the_other_pairs_by_rounding_only(llama):
    sequences, targets, shared = draw_pairs()
    together, _ = score(packing(llama), (sequences, targets, shared))
    for pair in range(len(sequences)):
        alone, _ = score(packing(llama), ([sequences[pair]], [targets[pair]], [shared[pair]]))
        torch.testing.assert_close(alone, together[pair : pair + 1], rtol=1e-5, atol=1e-5)


def test_the_same_pairs_give_bitwise_the_same_values(llama):
    first, second = (score(packing(llama), draw_pairs(), token_budget=64)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_a_passage_is_read_once_and_packs_keep_to_their_budget(llama):
    pairs = draw_pairs(beginnings=(30, 25), windows=8)
    sequences, targets, shared = pairs
    ((numbers, pack),) = packing(llama).packs(sequences, shared, targets, token_budget=4096)
    endings = sum(len(sequence) - 1 - cut for sequence, cut in zip(sequences, shared, strict=True))
    # The first window has no context, so the last token of each of its passages belongs to its endings, and the rest is
    # another beginning.
    assert pack.ids_1T.shape[1] == 30 + 25 + 29 + 24 + endings + 2
    assert sorted(numbers) == list(range(16))
    for budget in (64, 100):
        for numbers, pack in packing(llama).packs(sequences, shared, targets, budget):
            assert pack.ids_1T.shape[1] <= budget or len(numbers) == 1
            assert len(pack.rows_R) <= budget // 2 or len(numbers) == 1


@pytest.mark.parametrize("change", [{"sliding_window": 16}, {"attention_chunk_size": 16}])
def test_a_window_shorter_than_the_sequences_cannot_be_packed(change):
    model = random_model("mistral")
    for key, value in change.items():
        setattr(model.config, key, value)
    assert not can_pack(model, LONGEST)


def test_convolutions_cannot_be_packed():
    layers = {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}
    assert not can_pack(Lfm2ForCausalLM(Lfm2Config(**SMALL, **layers)).eval(), LONGEST)


def test_a_model_that_reads_packs_wrongly_is_found(llama, monkeypatch):
    assert can_pack(llama, LONGEST)
    forward = llama.forward
    monkeypatch.setattr(llama, "forward", lambda **kwargs: forward(**(kwargs | {"position_ids": None})))
    assert not can_pack(llama, LONGEST)


def load(folder, store, cache_megabytes=0, **changes):
    scorer = HFScorer(None, str(folder), SCORING | changes, trust_remote_code=False, cache_megabytes=cache_megabytes)
    scorer.load(store)
    return scorer


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_step_with_shared_passages_and_the_null_passage(llama_folder, store, compile):
    scorer = load(llama_folder, store, compile=compile)
    assert scorer.packs
    together = scorer.loglik(store, WINDOWS, CANDIDATES)
    assert scorer.forwards == 1
    for row, window in enumerate(WINDOWS):
        for column, passage in enumerate(CANDIDATES[row]):
            alone = scorer.loglik(store, window[None], passage[None, None])
            torch.testing.assert_close(alone[0, 0], together[row, column], rtol=1e-5, atol=0)


def test_cached_values_resume_bitwise(llama_folder, store, tmp_path_factory):
    """A run that stops after its second step and resumes after its first finds the values of the uninterrupted one."""
    steps = [(WINDOWS, CANDIDATES), (WINDOWS, CANDIDATES.flip(1).roll(1, 0)), (WINDOWS.flip(0), CANDIDATES + 1)]
    run = lambda scorer, steps: [scorer.loglik(store, *step) for step in steps]  # noqa: E731
    for cache_megabytes in (0, 10):
        stores = store.cache_folder("loglik")
        for file in stores.glob("*"):
            file.unlink()
        uninterrupted = run(load(llama_folder, store, cache_megabytes), steps)
        for file in stores.glob("*"):
            file.unlink()
        run(load(llama_folder, store, cache_megabytes), steps[:2])
        resumed = run(load(llama_folder, store, cache_megabytes), steps[1:])
        assert all(torch.equal(a, b) for a, b in zip(resumed, uninterrupted[1:], strict=True))


@pytest.mark.parametrize("dtype", ["int8", "int8_weights"])
def test_eight_bits_are_close_and_have_their_own_cache(tokenizer, store, tmp_path, dtype):
    if dtype == "int8_weights":
        pytest.importorskip("torchao")
    elif problem := eight_bit_problem():
        pytest.skip(problem)
    torch.manual_seed(0)
    folder = save_random_model(LlamaForCausalLM(LlamaConfig(**SMALL | {"vocab_size": len(tokenizer)})), tokenizer,
                               tmp_path)  # fmt: skip
    exact, eight = load(folder, store), load(folder, store, dtype=dtype)
    assert exact.fingerprint != eight.fingerprint
    expected, found = (scorer.loglik(store, WINDOWS, CANDIDATES) for scorer in (exact, eight))
    assert not torch.equal(expected, found)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0)
    torch.testing.assert_close(eight.token_embeddings(), exact.token_embeddings(), atol=2e-3, rtol=1e-2)
    assert torch.equal(eight.to("cpu").loglik(store, WINDOWS, CANDIDATES), found), "moved, it is not changed again"
    with pytest.raises(ConfigError, match=f"scorer.scoring.dtype={dtype}: 8-bit layers have no gradient"):
        eight.require_gradient()


def test_without_torchao_the_extra_is_named(llama_folder, store, monkeypatch):
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"scorer.scoring.dtype=int8_weights: needs the package torchao: .*\[int8\]"):
        load(llama_folder, store, dtype="int8_weights")


def test_eight_bits_are_refused_where_they_cannot_be_used(llama_folder, store, monkeypatch):
    if problem := eight_bit_problem():
        pytest.skip(problem)
    with pytest.raises(ConfigError, match="scorer.scoring.dtype=int8: is for CPUs, not for meta"):
        load(llama_folder, store, dtype="int8").to("meta")
    scores = CandidateScores(load(llama_folder, store, dtype="int8"), store, WINDOWS, CANDIDATES, Timer())
    with pytest.raises(ConfigError, match="scorer.scoring.dtype=int8: 8-bit layers have no gradient"):
        scores.in_batch(torch.ones(3, 1), torch.tensor([3]), False)
    monkeypatch.setattr("dream.scorers.int8._product", lambda *_: (_ for _ in ()).throw(RuntimeError("no kernel")))
    eight_bit_problem.cache_clear()
    with pytest.raises(ConfigError, match="scorer.scoring.dtype=int8: needs 8-bit matrix products"):
        load(llama_folder, store, dtype="int8")
    eight_bit_problem.cache_clear()
