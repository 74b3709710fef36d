"""Padding of pairs and their grouping into forwards, by hand. Run: pytest tests/scorers/test_batching.py"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dream.scorers.batching import NO_TARGET, PairBatching, left_aligned, tokens_per_forward


@pytest.mark.parametrize(("gibibytes", "tokens"), [(24, 16384), (80, 65536)])
def test_a_large_gpu_reads_more_tokens_at_once(monkeypatch, gibibytes, tokens):
    memory = SimpleNamespace(total_memory=gibibytes << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    assert tokens_per_forward(torch.device("cuda")) == tokens
    assert tokens_per_forward(torch.device("cpu")) == 4096


def test_forwards_hold_pairs_of_one_padded_length_within_the_budget():
    """Lengths 5, 40, 16, 17, 3, 30 are padded to 16, 48, 16, 32, 16, 32; 40 tokens are 2, 0 and 1 rows of these."""
    batching = PairBatching(most_tokens=128, longest_target=8)
    forwards = [pairs.tolist() for pairs in batching.forwards(np.array([5, 40, 16, 17, 3, 30]), token_budget=40)]
    assert forwards == [[0, 2], [4], [3], [5], [1]]  # a pair above the budget has a forward of its own


def test_a_pair_is_padded_to_no_more_tokens_than_the_model_has():
    batching = PairBatching(most_tokens=40, longest_target=8)
    assert batching.padded(np.array([1, 16, 17, 33, 40])).tolist() == [16, 16, 32, 40, 40]


def test_padding_by_hand():
    """Sequences of 4 and 3 tokens with 2 and 1 target tokens, the longest target has 3: T = 16.

    Kept columns are max(1, 16 - 16 + 1 - 3) = 1 to 15, so rows 0 to 14 predict them. Targets are at columns 2, 3 and 2.
    """
    batching = PairBatching(most_tokens=128, longest_target=3)
    batch = batching.pad([np.array([11, 12, 13, 14]), np.array([21, 22, 23])], [2, 1])
    assert batch.ids_PT.tolist() == [[11, 12, 13, 14, *[0] * 12], [21, 22, 23, *[0] * 13]]
    assert batch.rows_R.tolist() == list(range(15))
    no = NO_TARGET
    assert batch.labels_PR.tolist() == [[no, 13, 14, *[no] * 12], [no, 23, *[no] * 13]]


@pytest.mark.parametrize("length", [17, 25, 32])
def test_the_kept_rows_hold_every_target_of_a_padded_length(length):
    """Lengths 17 to 32 share T = 32 and the rows, whatever the length of their targets up to the longest, 5."""
    batching = PairBatching(most_tokens=128, longest_target=5)
    sequence = np.arange(100, 100 + length)
    for targets in (1, 5):
        batch = batching.pad([sequence], [targets])
        assert batch.rows_R.tolist() == list(range(11, 31))
        assert batch.labels_PR[batch.labels_PR != NO_TARGET].tolist() == sequence[-targets:].tolist()


def test_left_aligned_by_hand():
    scored = torch.tensor([[0.0, -1.0, -2.0, 0.0], [-3.0, 0.0, 0.0, 0.0], [0.0, 0.0, -4.0, -5.0]])
    labels = torch.tensor([[NO_TARGET, 7, 8, NO_TARGET], [9, *[NO_TARGET] * 3], [NO_TARGET, NO_TARGET, 1, 2]])
    expected = torch.tensor([[-1.0, -2.0, 0.0], [-3.0, 0.0, 0.0], [-4.0, -5.0, 0.0]])
    assert torch.equal(left_aligned(scored, labels, 3), expected)
