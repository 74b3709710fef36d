"""Losses against numbers derived by hand. Run: pytest tests/objectives"""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from dream.objectives.attention import Attention
from dream.objectives.base import Candidates, LossInputs, spread
from dream.objectives.in_batch_attention import InBatchAttention, in_batch_weights
from dream.objectives.info_nce import InfoNCE, contrast, info_nce
from dream.objectives.joint_posterior import JointPosterior
from dream.objectives.kl_posterior import KLPosterior, kl_posterior
from dream.objectives.leave_one_out import LeaveOneOut
from dream.objectives.marginal import Marginal, marginal
from dream.objectives.mixed import mix
from dream.utils.errors import ConfigError

ALL = torch.ones(1, 2, dtype=torch.bool)
KL = {"direction": "forward", "in_batch": True, "continuation": 0.0, "null_similarity": None, "unhelped_weight": 1.0}


@dataclass
class FixedScores:
    """Candidate scores with given numbers, in place of a language model."""

    loglik_SK: Tensor | None = None
    null_S: Tensor | None = None
    token_loglik: tuple[Tensor, Tensor] | None = None
    null_token_loglik_ST: Tensor | None = None
    without_SK: Tensor | None = None


def candidates(sim_BU, columns_SK, allowed_BU=None, **scores) -> Candidates:
    allowed_BU = torch.ones_like(sim_BU, dtype=torch.bool) if allowed_BU is None else allowed_BU
    return Candidates(sim_BU, columns_SK, allowed_BU, allowed_BU, torch.arange(sim_BU.shape[1]),
                      columns_SK.unique(), FixedScores(**scores))  # fmt: skip


def inputs_of(seen: Candidates) -> LossInputs:
    return LossInputs(torch.eye(len(seen.sim_BU), dtype=torch.bool), seen, continuation_sim_BA=None)


def test_kl_by_hand():
    """posterior (3/4, 1/4) against p (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2) = 0.130812 nats."""
    [loss] = kl_posterior(torch.tensor([[0.75, 0.25]]), torch.zeros(1, 2), ALL, 1.0, "forward")
    assert loss.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-6)


def test_reverse_kl_by_hand():
    """p (1/2, 1/2) against posterior (3/4, 1/4): 1/2 ln(2/3) + 1/2 ln 2 = 0.143841 nats."""
    [loss] = kl_posterior(torch.tensor([[0.75, 0.25]]), torch.zeros(1, 2), ALL, 1.0, "reverse")
    assert loss.item() == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2), abs=1e-6)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_kl_of_equal_distributions_is_0_with_gradient_0(direction):
    sim_BU = torch.tensor([[0.1, 0.2, -0.4], [0.5, 0.0, 0.3]], requires_grad=True)
    posterior_BU = torch.softmax(sim_BU.detach() / 0.1, dim=1)
    loss = kl_posterior(posterior_BU, sim_BU, torch.ones(2, 3, dtype=torch.bool), 0.1, direction).mean()
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert sim_BU.grad is not None
    assert sim_BU.grad.abs().max() < 1e-6


def test_gradient_of_the_forward_kl_is_p_minus_posterior_over_temperature():
    """d/ds KL = (p - posterior) / temperature, per window, divided by B = 2."""
    sim_BU = torch.tensor([[0.1, 0.2, -0.4], [0.5, 0.0, 0.3]], dtype=torch.float64, requires_grad=True)
    posterior_BU = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]], dtype=torch.float64)
    allowed_BU = torch.tensor([[True, True, False], [True, True, True]])
    kl_posterior(posterior_BU, sim_BU, allowed_BU, 0.1, "forward").mean().backward()
    p_BU = torch.softmax((sim_BU.detach() / 0.1).masked_fill(~allowed_BU, -torch.inf), dim=1)
    torch.testing.assert_close(sim_BU.grad, (p_BU - posterior_BU) / 0.1 / 2)


@pytest.mark.parametrize("continuation", [0.0, 0.3])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize(("null_similarity", "unhelped_weight"), [(None, 1.0), (0.3, 0.5)])
def test_kl_posterior_gradient_against_finite_differences(
    direction, in_batch, continuation, null_similarity, unhelped_weight
):
    """Three windows, of which the first two are scored."""
    objective = KLPosterior(0.2, 2.0, direction, in_batch, continuation, null_similarity, unhelped_weight)
    sim_BU = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    continuation_sim_BA = torch.rand(3, 3, dtype=torch.float64, requires_grad=True)

    def loss(sim_BU, continuation_sim_BA):
        seen = candidates(
            sim_BU,
            columns_SK=torch.tensor([[0, 2], [1, 3]]),
            loglik_SK=torch.tensor([[-3.0, -5.0], [-40.0, -41.0]], dtype=torch.float64),
            null_S=torch.tensor([-4.0, -39.0], dtype=torch.float64),
        )
        return objective(LossInputs(torch.eye(3, dtype=torch.bool), seen, continuation_sim_BA)).loss

    assert torch.autograd.gradcheck(loss, (sim_BU, continuation_sim_BA))


def test_without_in_batch_other_windows_candidates_do_not_matter():
    objective = KLPosterior(1.0, 1.0, **KL | {"in_batch": False})
    losses = []
    for other in (-5.0, 5.0):
        own = torch.tensor([[0, 1]])
        seen = candidates(torch.tensor([[0.3, 0.1, other]]), own, loglik_SK=torch.tensor([[-1.0, -2.0]]))
        losses.append(objective(inputs_of(seen)).loss.item())
    assert losses[0] == losses[1]


def test_the_target_of_continuations_in_scored_and_unscored_windows():
    """Two windows, one of them scored, sim all 0, so p is uniform over the columns that a window may use.

    Window 1: candidates 0, 1 and continuations 1, 2: target (1/4, 1/4, 1/2, 0), p = 1/4 each:
    2 * 1/4 ln 1 + 1/2 ln 2. Window 2, whose document has candidate 1: target (0, -, 0, 1), p = 1/3: ln 3.
    """
    objective = KLPosterior(1.0, 1.0, **KL | {"continuation": 0.5})
    loss = objective(
        LossInputs(
            same_document_BA=torch.eye(2, dtype=torch.bool),
            candidates=candidates(
                torch.zeros(2, 2),
                torch.tensor([[0, 1]]),
                torch.tensor([[True, True], [True, False]]),
                loglik_SK=torch.tensor([[-7.0, -7.0]]),
            ),
            continuation_sim_BA=torch.zeros(2, 2),
        )
    ).loss
    assert loss.item() == pytest.approx((0.5 * math.log(2) + math.log(3)) / 2, abs=1e-6)


LOGLIK = torch.tensor([[-1.0, -1.0, -1.0 - math.log(2)], [-5.0, -5.0, -5.0]])


def test_kl_posterior_of_two_windows_with_three_candidates_by_hand():
    """Log-likelihoods (-1, -1, -1 - ln 2) and (-5, -5, -5): posteriors (2/5, 2/5, 1/5) and (1/3, 1/3, 1/3).

    Similarities (0, 0, ln 2) and 0: p = (1/4, 1/4, 1/2) and (1/3, 1/3, 1/3). KL: 4/5 ln(8/5) + 1/5 ln(2/5) = 0.192745
    and 0. Mean 0.096373. Gradient (p - posterior) / 2: (-0.075, -0.075, 0.15) and 0.
    """
    sim = torch.tensor([[0.0, 0.0, math.log(2)], [0.0, 0.0, 0.0]], requires_grad=True)
    objective = KLPosterior(1.0, 1.0, **KL)
    loss = objective(inputs_of(candidates(sim, torch.tensor([[0, 1, 2], [0, 1, 2]]), loglik_SK=LOGLIK))).loss
    loss.backward()
    assert loss.item() == pytest.approx(0.096373, abs=1e-6)
    torch.testing.assert_close(sim.grad, torch.tensor([[-0.075, -0.075, 0.15], [0.0, 0.0, 0.0]]))


def test_joint_posterior_of_two_windows_with_three_candidates_by_hand():
    """`lm_temperature` 1 and `untrained_temperature` 1/2; cosines before training (0, 0, ln(2) / 2) and 0.

    Posterior: (2, 2, 1) times (1, 1, 2) is uniform in both windows. p is (1/4, 1/4, 1/2) and uniform: KL of window 1:
    2/3 ln(4/3) + 1/3 ln(2/3) = 0.056633, mean 0.028317. Gradient (p - posterior) / 2: (-1/24, -1/24, 1/12) and 0.
    """
    sim = torch.tensor([[0.0, 0.0, math.log(2)], [0.0, 0.0, 0.0]], requires_grad=True)
    objective = JointPosterior(0.5, "posterior", temperature=1.0, lm_temperature=1.0, **KL)
    inputs = inputs_of(candidates(sim, torch.tensor([[0, 1, 2], [0, 1, 2]]), loglik_SK=LOGLIK))
    inputs.candidates.untrained_sim_SK = torch.tensor([[0.0, 0.0, math.log(2) / 2], [0.0, 0.0, 0.0]])
    loss = objective(inputs).loss
    loss.backward()
    assert loss.item() == pytest.approx(0.028317, abs=1e-6)
    torch.testing.assert_close(sim.grad, torch.tensor([[-1 / 24, -1 / 24, 1 / 12], [0.0, 0.0, 0.0]]))


def test_cosines_before_training_weigh_the_same_at_every_lm_temperature():
    """Equal log-likelihoods: the posterior is softmax(cosine / untrained_temperature), whatever lm_temperature is."""
    for lm_temperature in (0.5, 4.0):
        objective = JointPosterior(0.5, "posterior", temperature=1.0, lm_temperature=lm_temperature, **KL)
        given = candidates(torch.zeros(1, 2), torch.tensor([[0, 1]]), loglik_SK=torch.full((1, 2), -3.0))
        given.untrained_sim_SK = torch.tensor([[math.log(3) / 2, 0.0]])
        posterior_SK, _ = objective._posterior(given, given.scores.loglik_SK)
        torch.testing.assert_close(posterior_SK, torch.tensor([[0.75, 0.25]]))


def test_joint_posterior_needs_cosines_of_every_candidate():
    with pytest.raises(ConfigError, match=r"^objective\.null_similarity=0\.1: joint_posterior has no cosine"):
        JointPosterior(0.5, "posterior", temperature=1.0, lm_temperature=1.0, **(KL | {"null_similarity": 0.1}))
    with pytest.raises(ConfigError, match=r"^objective\.untrained_temperature=0: must be above 0"):
        JointPosterior(0, "posterior", temperature=1.0, lm_temperature=1.0, **KL)


def test_own_passages_are_the_target_of_the_questions_for_which_the_posterior_prefers_them():
    """Log-likelihoods as above; cosines before training / `untrained_temperature`: (ln 4, 0, 0) and (0, ln 2, 0).

    Joint posteriors: (2, 2, 1) times (4, 1, 1) prefers candidate 1, and (1, 1, 1) times (1, 2, 1) candidate 2. So only
    window 1 counts: -ln p = ln 4, with p = (1/4, 1/4, 1/2). Mean ln(4) / 2; gradient (p - (1, 0, 0)) / 2, and 0.
    """
    sim = torch.tensor([[0.0, 0.0, math.log(2)], [0.0, 0.0, 0.0]], requires_grad=True)
    objective = JointPosterior(0.5, "own_passage", temperature=1.0, lm_temperature=1.0, **KL)
    inputs = inputs_of(candidates(sim, torch.tensor([[0, 1, 2], [0, 1, 2]]), loglik_SK=LOGLIK))
    inputs.candidates.untrained_sim_SK = torch.tensor([[math.log(4) / 2, 0.0, 0.0], [0.0, math.log(2) / 2, 0.0]])
    output = objective(inputs)
    output.loss.backward()
    assert output.weights.tolist() == [1, 0]
    assert output.loss.item() == pytest.approx(math.log(4) / 2, abs=1e-6)
    torch.testing.assert_close(sim.grad, torch.tensor([[-3 / 8, 1 / 8, 1 / 4], [0.0, 0.0, 0.0]]))


def test_the_best_passage_of_the_posterior_is_the_target():
    """Everything as above, but window 2 counts, too, with candidate 2 as its target: its p is uniform, -ln p = ln 3.

    Mean (ln 4 + ln 3) / 2; gradient (p - (1, 0, 0)) / 2 and (p - (0, 1, 0)) / 2.
    """
    sim = torch.tensor([[0.0, 0.0, math.log(2)], [0.0, 0.0, 0.0]], requires_grad=True)
    objective = JointPosterior(0.5, "best_passage", temperature=1.0, lm_temperature=1.0, **KL)
    inputs = inputs_of(candidates(sim, torch.tensor([[0, 1, 2], [0, 1, 2]]), loglik_SK=LOGLIK))
    inputs.candidates.untrained_sim_SK = torch.tensor([[math.log(4) / 2, 0.0, 0.0], [0.0, math.log(2) / 2, 0.0]])
    loss = objective(inputs).loss
    loss.backward()
    assert loss.item() == pytest.approx(math.log(12) / 2, abs=1e-6)
    torch.testing.assert_close(sim.grad, torch.tensor([[-3 / 8, 1 / 8, 1 / 4], [1 / 6, -1 / 3, 1 / 6]]))
    with pytest.raises(ConfigError, match=r"^objective\.direction=reverse: with objective\.target=best_passage choose"):
        JointPosterior(0.5, "best_passage", temperature=1.0, lm_temperature=1.0, **(KL | {"direction": "reverse"}))


def test_own_passages_need_questions_alone(store):
    for key, value in {"continuation": 0.3, "direction": "reverse"}.items():
        with pytest.raises(ConfigError, match=rf"^objective\.{key}={value}: with objective\.target=own_passage choose"):
            JointPosterior(0.5, "own_passage", temperature=1.0, lm_temperature=1.0, **(KL | {key: value}))
    with pytest.raises(ConfigError, match=r"^objective\.target=own: choose one of posterior, best_passage"):
        JointPosterior(0.5, "own", temperature=1.0, lm_temperature=1.0, **KL)
    objective = JointPosterior(0.5, "own_passage", temperature=1.0, lm_temperature=1.0, **KL)
    with pytest.raises(ConfigError, match=r"^objective\.target=own_passage: needs questions: set data\.questions"):
        objective.prepare(None, store, 3)


def test_leave_one_out_of_two_windows_with_three_candidates_by_hand():
    """Without candidate 3 the loss is 1 + ln 2, without another 1: posterior (1/4, 1/4, 1/2), and uniform in window 2.

    p is uniform. KL of window 1: 1/2 ln(3/4) + 1/2 ln(3/2) = 0.058892, of window 2: 0. Mean 0.029446. Gradient
    (p - posterior) / 2: (1/24, 1/24, -1/12) and 0.
    """
    sim = torch.zeros(2, 3, requires_grad=True)
    objective = LeaveOneOut(1.0, 1.0, **KL)
    loss = objective(inputs_of(candidates(sim, torch.tensor([[0, 1, 2], [0, 1, 2]]), without_SK=LOGLIK))).loss
    loss.backward()
    assert loss.item() == pytest.approx(0.029446, abs=1e-6)
    torch.testing.assert_close(sim.grad, torch.tensor([[1 / 24, 1 / 24, -1 / 12], [0.0, 0.0, 0.0]]))


def test_marginal_of_two_windows_with_three_candidates_by_hand():
    """p = (1/4, 1/4, 1/2) and uniform. Two tokens in window 1, with p_LM = (1/2, 1/2, 1) and (1, 1, 1/2) after the
    candidates: Σ = 3/4 at each, loss ln(4/3) = 0.287682. One token in window 2, with (1/8, 1/8, 1/2): Σ = 1/4, ln 4.

    Mean (ln(4/3) + ln 4) / 2 = 0.836988. Gradient by s_k: p_k - mean_t p_k p_LM / Σ, halved: in window 1 candidate 1:
    1/4 - (1/6 + 1/3) / 2 = 0, the same for 2, hence 0 for 3; in window 2: 1/3 - 1/6, 1/3 - 1/6, 1/3 - 2/3.
    """
    sim = torch.tensor([[0.0, 0.0, math.log(2)], [0.0, 0.0, 0.0]], requires_grad=True)
    chances = torch.tensor([[[0.5, 1.0], [0.5, 1.0], [1.0, 0.5]], [[0.125, 1.0], [0.125, 1.0], [0.5, 1.0]]])
    scores = {"token_loglik": (chances.log(), torch.tensor([[True, True], [True, False]]))}
    objective = Marginal(1.0, 0.0, 1.0, None)
    loss = objective(inputs_of(candidates(sim, torch.tensor([[0, 1, 2], [0, 1, 2]]), **scores))).loss
    loss.backward()
    assert loss.item() == pytest.approx(0.836988, abs=1e-6)
    expected = torch.tensor([[0.0, 0.0, 0.0], [1 / 12, 1 / 12, -1 / 6]])
    torch.testing.assert_close(sim.grad, expected, atol=1e-6, rtol=0)


def test_marginal_gradient_against_finite_differences():
    loglik_SKT = torch.randn(2, 3, 4, dtype=torch.float64) - 2
    mask_ST = torch.tensor([[True] * 4, [True, True, False, False]])
    sim_SK = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda sim: marginal(torch.log_softmax(sim / 0.3, 1), loglik_SKT, mask_ST), sim_SK)


def test_marginal_with_no_passage_as_a_candidate():
    """One candidate and "no passage", both with cosine 0: p = 1/2 each; p_LM 1/2 and 1/4: Σ = 3/8, loss ln(8/3)."""
    scores = {
        "token_loglik": (torch.tensor([[[0.5]]]).log(), torch.tensor([[True]])),
        "null_token_loglik_ST": torch.tensor([[0.25]]).log(),
    }
    objective = Marginal(1.0, 0.0, 1.0, null_similarity=0.0)
    loss = objective(inputs_of(candidates(torch.zeros(1, 1), torch.tensor([[0]]), **scores))).loss
    assert loss.item() == pytest.approx(math.log(8 / 3), abs=1e-6)


def test_no_passage_has_its_part_of_the_posterior():
    """Log-likelihoods 0, 0 and ln 2 without a passage: target (1/4, 1/4, 1/2). p uniform over the three: as above,
    0.058892. No candidate helps more than no passage, so the window has the weight of unhelped windows."""
    scores = {"loglik_SK": torch.zeros(1, 2), "null_S": torch.tensor([math.log(2)])}
    seen = candidates(torch.zeros(1, 2), torch.tensor([[0, 1]]), **scores)
    for weight in (1.0, 0.5):
        objective = KLPosterior(1.0, 1.0, **KL | {"null_similarity": 0.0, "unhelped_weight": weight})
        assert objective(inputs_of(seen)).loss.item() == pytest.approx(0.058892 * weight, abs=1e-6)


def test_in_batch_weights_of_two_windows_with_three_texts_by_hand():
    """Cosines (0, 0, ln 2): (1/4, 1/4, 1/2); with text 3 from the window's own document: (1/2, 1/2, 0)."""
    sim = torch.tensor([[0.0, 0.0, math.log(2)]] * 2)
    weights = in_batch_weights(sim, torch.tensor([[True, True, True], [True, True, False]]), 1.0)
    torch.testing.assert_close(weights, torch.tensor([[0.25, 0.25, 0.5], [0.5, 0.5, 0.0]]))


@dataclass
class Mixture:
    """Stands for a language model with p(target) = Σ_k w_k · chance_k, whose loss is known in closed form."""

    chance_SK: Tensor

    def weighted(self, weights_SK, heads, mass):
        return (weights_SK * self.chance_SK).sum(1).log()

    def in_batch(self, weights_SU, distinct_U, value_norm):
        return (weights_SU * self.chance_SK).sum(1).log()


@pytest.mark.parametrize("name", ["attention", "in_batch_attention"])
def test_attention_objectives_of_two_windows_with_three_candidates_by_hand(name):
    """p = (1/4, 1/4, 1/2) and uniform; chances (1/2, 1/2, 1) and (1/8, 1/8, 1/2): Σ = 3/4 and 1/4.

    Loss (ln(4/3) + ln 4) / 2 = 0.836988. Gradient by s_k, p_k (1 - chance_k / Σ) / 2: in window 1 (1/4)(1/3)/2 = 1/24
    twice and (1/2)(-1/3)/2 = -1/12; in window 2 (1/3)(1/2)/2 = 1/12 twice and (1/3)(-1)/2 = -1/6.
    """
    objective = InBatchAttention(1.0, 0.0, 1.0, True)
    if name == "attention":
        objective = Attention(1.0, 0.0, 1.0, "keep", [[0, 0]], 1, 0, finder=None)
        objective.chosen = {0: [0]}
    sim = torch.tensor([[0.0, 0.0, math.log(2)], [0.0, 0.0, 0.0]], requires_grad=True)
    seen = candidates(sim, torch.tensor([[0, 1, 2], [0, 1, 2]]))
    seen.scores = Mixture(torch.tensor([[0.5, 0.5, 1.0], [0.125, 0.125, 0.5]]))
    output = objective(inputs_of(seen))
    assert output.candidate_loglik_SK is None
    loss = output.loss
    loss.backward()
    assert loss.item() == pytest.approx(0.836988, abs=1e-6)
    expected = torch.tensor([[1 / 24, 1 / 24, -1 / 12], [1 / 12, 1 / 12, -1 / 6]])
    torch.testing.assert_close(sim.grad, expected)


def test_contrast_and_mix_by_hand():
    """Two windows of two documents, one candidate, which belongs to the second's document; all similarities 0.

    Window 1 chooses among two continuations and the candidate: ln 3; window 2 among the continuations: ln 2. With a
    loss of 5 for window 1, the only scored one, and a share of 1/4: (3/4 · 5 + 1/4 ln 3 + ln 2) / 2.
    """
    allowed = torch.tensor([[True], [False]])
    contrast_B = contrast(torch.zeros(2, 1), allowed, torch.zeros(2, 2), torch.eye(2, dtype=torch.bool), 1.0)
    torch.testing.assert_close(contrast_B, torch.tensor([3.0, 2.0]).log())
    mixed = mix(torch.tensor([5.0]), contrast_B, 0.25)
    assert mixed.item() == pytest.approx((0.75 * 5 + 0.25 * math.log(3) + math.log(2)) / 2, abs=1e-6)


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
def test_a_temperature_out_of_range_names_its_key(temperature):
    with pytest.raises(ConfigError, match="objective.temperature"):
        InfoNCE(temperature)
    with pytest.raises(ConfigError, match="objective.lm_temperature"):
        KLPosterior(1.0, temperature, **KL)
    with pytest.raises(ConfigError, match="objective.temperature"):
        Marginal(temperature, 0.0, 1.0, None)
