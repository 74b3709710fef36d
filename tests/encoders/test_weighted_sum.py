"""The weighted sum of token vectors and its gradients. Run: pytest tests/encoders/test_weighted_sum.py"""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dream.encoders.weighted_sum import make_dense, weighted_sum

ROW_V = torch.tensor([3, 0, 4, 1, 2, 5])  # of each token


@pytest.fixture
def weights():
    draw = torch.Generator().manual_seed(0)
    table_UD, weight_V = (nn.Parameter(torch.randn(*shape, generator=draw).double()) for shape in ((6, 4), (6,)))
    make_dense(table_UD)
    make_dense(weight_V)
    return table_UD, weight_V


def texts(seed):
    """Tokens 0 to 4 of three texts; the second has none."""
    ids_BT = torch.randint(5, (3, 7), generator=torch.Generator().manual_seed(seed))
    return ids_BT, torch.arange(7) < torch.tensor([[7], [0], [4]])


def expected(table_UD, weight_V, ids_BT, chosen_BT):
    return F.embedding_bag(ROW_V[ids_BT], table_UD, mode="sum", per_sample_weights=weight_V[ids_BT] * chosen_BT)


def test_sums_and_gradients_are_those_of_pytorch(weights):
    """Two batches in one step: the gradients of both are added."""
    gradients = []
    for made in (
        lambda ids_BT, chosen_BT: weighted_sum(*weights, ROW_V[ids_BT], ids_BT, chosen_BT),
        lambda ids_BT, chosen_BT: expected(*weights, ids_BT, chosen_BT),
    ):
        sums = [made(*texts(seed)) for seed in (1, 2)]
        sum(((number + 2) * part_BD.sin()).sum() for number, part_BD in enumerate(sums)).backward()
        gradients.append([torch.cat(sums), *(parameter.grad for parameter in weights)])
        assert not any(parameter.grad.is_sparse for parameter in weights)
        for parameter in weights:
            parameter.grad = None
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert gradients[0][1][5].eq(0).all()  # no text has token 5


def test_gradients_of_several_backward_passes_are_added(weights):
    for _ in range(2):
        weighted_sum(*weights, ROW_V[texts(1)[0]], *texts(1)).sin().sum().backward()
    twice = [parameter.grad.clone() for parameter in weights]
    for parameter in weights:
        parameter.grad = None
    weighted_sum(*weights, ROW_V[texts(1)[0]], *texts(1)).sin().sum().backward()
    for parameter, gradient in zip(weights, twice, strict=True):
        torch.testing.assert_close(gradient, 2 * parameter.grad)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda weights: pickle.loads(pickle.dumps(weights))])
def test_a_copy_needs_its_own_hook(weights, copied):
    """The static encoder calls `make_dense` at each forward pass."""
    table_UD, weight_V = copied(weights)
    make_dense(table_UD)
    weighted_sum(table_UD, weight_V, ROW_V[texts(1)[0]], *texts(1)).sum().backward()
    assert not table_UD.grad.is_sparse
    assert weight_V.grad.is_sparse


def test_frozen_weights(weights):
    for parameter in weights:
        frozen = nn.Parameter(parameter.detach().clone(), requires_grad=False)
        make_dense(frozen)
        assert not frozen.requires_grad


def test_no_tokens_at_all(weights):
    ids_BT, _ = texts(1)
    sum_BD = weighted_sum(*weights, ROW_V[ids_BT], ids_BT, torch.zeros_like(ids_BT, dtype=torch.bool))
    sum_BD.sum().backward()
    assert sum_BD.eq(0).all()
    assert weights[0].grad.eq(0).all()
