"""Losses against numbers derived by hand. Run: pytest tests/objectives"""

import math

import pytest
import torch

from dream.errors import ConfigError
from dream.objectives.base import Candidates, Evidence, spread
from dream.objectives.info_nce import InfoNCE, info_nce
from dream.objectives.kl_posterior import KLPosterior, kl_posterior

ALL = torch.ones(1, 2, dtype=torch.bool)


def evidence(candidates: Candidates) -> Evidence:
    return Evidence(torch.eye(len(candidates.sim_BU), dtype=torch.bool), candidates, continuation_sim_BB=None)


def test_kl_by_hand():
    """posterior (3/4, 1/4) against p (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2) = 0.130812 nats."""
    loss = kl_posterior(torch.tensor([[0.75, 0.25]]), torch.zeros(1, 2), ALL, 1.0, "forward")
    assert loss.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-6)


def test_reverse_kl_by_hand():
    """p (1/2, 1/2) against posterior (3/4, 1/4): 1/2 ln(2/3) + 1/2 ln 2 = 0.143841 nats."""
    loss = kl_posterior(torch.tensor([[0.75, 0.25]]), torch.zeros(1, 2), ALL, 1.0, "reverse")
    assert loss.item() == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2), abs=1e-6)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_kl_is_zero_where_both_agree_and_its_gradient_vanishes(direction):
    sim_BU = torch.tensor([[0.1, 0.2, -0.4], [0.5, 0.0, 0.3]], requires_grad=True)
    posterior_BU = torch.softmax(sim_BU.detach() / 0.1, dim=1)
    loss = kl_posterior(posterior_BU, sim_BU, torch.ones(2, 3, dtype=torch.bool), 0.1, direction)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert sim_BU.grad is not None
    assert sim_BU.grad.abs().max() < 1e-6


def test_gradient_of_the_forward_kl_is_p_minus_posterior_over_temperature():
    """d/ds KL = (p - posterior) / temperature, per window, divided by B = 2."""
    sim_BU = torch.tensor([[0.1, 0.2, -0.4], [0.5, 0.0, 0.3]], dtype=torch.float64, requires_grad=True)
    posterior_BU = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]], dtype=torch.float64)
    allowed_BU = torch.tensor([[True, True, False], [True, True, True]])
    kl_posterior(posterior_BU, sim_BU, allowed_BU, 0.1, "forward").backward()
    p_BU = torch.softmax((sim_BU.detach() / 0.1).masked_fill(~allowed_BU, -torch.inf), dim=1)
    torch.testing.assert_close(sim_BU.grad, (p_BU - posterior_BU) / 0.1 / 2)


@pytest.mark.parametrize("continuation", [0.0, 0.3])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("in_batch", [True, False])
def test_kl_posterior_gradient_against_finite_differences(direction, in_batch, continuation):
    """Three windows, of which the first two are scored."""
    objective = KLPosterior(0.2, 2.0, direction, in_batch, continuation)
    sim_BU = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    continuation_sim_BB = torch.rand(3, 3, dtype=torch.float64, requires_grad=True)

    def loss(sim_BU, continuation_sim_BB):
        candidates = Candidates(
            sim_BU=sim_BU,
            columns_SK=torch.tensor([[0, 2], [1, 3]]),
            allowed_BU=torch.ones(3, 4, dtype=torch.bool),
            loglik_SK=torch.tensor([[-3.0, -5.0], [-40.0, -41.0]], dtype=torch.float64),
        )
        return objective(Evidence(torch.eye(3, dtype=torch.bool), candidates, continuation_sim_BB))

    assert torch.autograd.gradcheck(loss, (sim_BU, continuation_sim_BB))


def test_without_in_batch_other_windows_candidates_do_not_matter():
    objective = KLPosterior(temperature=1.0, lm_temperature=1.0, direction="forward", in_batch=False, continuation=0.0)
    losses = []
    for other in (-5.0, 5.0):
        candidates = Candidates(
            sim_BU=torch.tensor([[0.3, 0.1, other]]),
            columns_SK=torch.tensor([[0, 1]]),
            allowed_BU=torch.ones(1, 3, dtype=torch.bool),
            loglik_SK=torch.tensor([[-1.0, -2.0]]),
        )
        losses.append(objective(evidence(candidates)).item())
    assert losses[0] == losses[1]


def test_continuations_take_their_share_and_unscored_windows_have_nothing_else():
    """Two windows, one of them scored, sim all 0, so p is uniform over the columns that a window may use.

    Window 1: candidates 0, 1 and continuations 1, 2: target (1/4, 1/4, 1/2, 0), p = 1/4 each:
    2 * 1/4 ln 1 + 1/2 ln 2. Window 2, whose document has candidate 1: target (0, -, 0, 1), p = 1/3: ln 3.
    """
    objective = KLPosterior(1.0, 1.0, "forward", in_batch=True, continuation=0.5)
    loss = objective(
        Evidence(
            same_document_BB=torch.eye(2, dtype=torch.bool),
            candidates=Candidates(
                sim_BU=torch.zeros(2, 2),
                columns_SK=torch.tensor([[0, 1]]),
                allowed_BU=torch.tensor([[True, True], [True, False]]),
                loglik_SK=torch.tensor([[-7.0, -7.0]]),
            ),
            continuation_sim_BB=torch.zeros(2, 2),
        )
    )
    assert loss.item() == pytest.approx((0.5 * math.log(2) + math.log(3)) / 2, abs=1e-6)


def test_spread_puts_values_into_their_columns():
    spread_BU = spread(torch.tensor([[0.9, 0.1], [0.4, 0.6]]), torch.tensor([[2, 0], [1, 2]]), 3)
    torch.testing.assert_close(spread_BU, torch.tensor([[0.1, 0.0, 0.9], [0.0, 0.4, 0.6]]))


def test_info_nce_by_hand():
    """Row 1: ln(1 + e^-1) from (1, 0); row 2: ln(1 + e^1) from (1, 0) with the second right."""
    sim_BB = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    loss = info_nce(sim_BB, torch.eye(2, dtype=torch.bool), 1.0)
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-1)) + math.log(1 + math.e)) / 2, abs=1e-6)


def test_windows_of_one_document_are_no_negatives_of_each_other():
    loss = info_nce(torch.tensor([[0.0, 9.0], [9.0, 0.0]]), torch.ones(2, 2, dtype=torch.bool), 1.0)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("temperature", [0, -0.1])
def test_a_temperature_that_cannot_be_is_refused_by_name(temperature):
    with pytest.raises(ConfigError, match="objective.temperature"):
        InfoNCE(temperature)
    with pytest.raises(ConfigError, match="objective.lm_temperature"):
        KLPosterior(1.0, temperature, "forward", True, 0.0)
