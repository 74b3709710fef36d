"""Every objective is a function of its inputs: a call sets nothing. Run: pytest tests/objectives/test_side_effects.py

All objectives in conf/objective are tested with a real, tiny language model, so a new one is covered by its YAML.
"""

from functools import cached_property

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from tests.random_models import SCORING

from dream.objectives.base import Candidates, LossInputs
from dream.scorers.candidate_scores import CandidateScores
from dream.scorers.hf import HFScorer
from dream.utils.runtime import CONFIG_DIR
from dream.utils.timing import Timer

NAMES = sorted(path.stem for path in (CONFIG_DIR / "objective").glob("*.yaml"))
WITHOUT_POSTERIOR = ("attention", "in_batch_attention", "info_nce")
VARIANTS = {
    "default": [],
    "scored windows only": ["objective.continuation=0"],
    "unhelped windows half": ["objective.unhelped_weight=0.5"],
    "no passage is a candidate": ["objective.null_similarity=0.1"],
}
LACKS = {
    "scored windows only": ("info_nce",),
    "unhelped windows half": ("info_nce",),
    "no passage is a candidate": ("attention", "in_batch_attention", "info_nce", "joint_posterior", "leave_one_out"),
}
CASES = [(name, variant) for name in NAMES for variant in VARIANTS if name not in LACKS.get(variant, ())]


@pytest.fixture(scope="module")
def scorer(llama_folder, store):
    scorer = HFScorer(None, str(llama_folder), SCORING, trust_remote_code=False, cache_megabytes=0)
    scorer.load(store)
    return scorer


def objective_of(name, variant, scorer, store):
    overrides = [f"objective={name}", *VARIANTS[variant], *(["objective.heads=all"] if name == "attention" else [])]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        objective = instantiate(compose("train", overrides).objective)
    objective.prepare(scorer, store, 3)
    return objective


def inputs_of(scorer, store):
    """Three windows, two of them scored, with three candidates each; five distinct candidates."""
    draw = torch.Generator().manual_seed(0)
    ids_U = torch.tensor([3, 20, 31, 47, 58])
    columns_SK = torch.tensor([[0, 1, 2], [4, 3, 2]])
    scores = CandidateScores(scorer, store, torch.tensor([0, 31]), ids_U[columns_SK], Timer())
    sim_BU = torch.rand(3, 5, generator=draw).requires_grad_()
    allowed_BU = torch.ones(3, 5, dtype=torch.bool)
    allowed_BU[2, 0] = False
    sim_BB = torch.rand(3, 3, generator=draw).requires_grad_()
    untrained_SK = torch.rand(2, 3, generator=draw)
    candidates = Candidates(
        sim_BU, columns_SK, allowed_BU, allowed_BU, ids_U, columns_SK.unique(), scores, untrained_SK
    )
    return LossInputs(torch.eye(3, dtype=torch.bool), candidates, sim_BB)


def attributes(thing):
    """Name → (identity, content) of everything that is set on an object, except cached properties.

    The content of a tensor is its version, which every write in place raises; that of a container is its text.
    """
    cached = {name for name in dir(type(thing)) if isinstance(getattr(type(thing), name), cached_property)}
    return {
        name: (id(value), value._version if isinstance(value, torch.Tensor) else repr(value))
        for name, value in vars(thing).items()
        if name not in cached
    }


def gradients(output, inputs):
    sims = [inputs.candidates.sim_BU, inputs.continuation_sim_BA]
    return torch.autograd.grad(output.loss, sims, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_a_second_call_gives_bitwise_the_same_output(name, variant, scorer, store):
    objective, inputs = objective_of(name, variant, scorer, store), inputs_of(scorer, store)
    first, second = objective(inputs), objective(inputs)
    assert first.loss.requires_grad
    assert torch.equal(first.loss, second.loss)
    for one, two in zip(gradients(first, inputs), gradients(second, inputs), strict=True):
        assert torch.equal(one, two)
    if name in WITHOUT_POSTERIOR:
        assert first.candidate_loglik_SK is second.candidate_loglik_SK is None
    else:
        assert torch.equal(first.candidate_loglik_SK, second.candidate_loglik_SK)


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_a_call_sets_no_attribute(name, variant, scorer, store):
    objective, inputs = objective_of(name, variant, scorer, store), inputs_of(scorer, store)
    things = {
        "objective": objective,
        "inputs": inputs,
        "candidates": inputs.candidates,
        "scores": inputs.candidates.scores,
    }
    before = {what: attributes(thing) for what, thing in things.items()}
    objective(inputs)
    for what, thing in things.items():
        assert attributes(thing) == before[what], what


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITHOUT_POSTERIOR])
def test_candidate_logliks_have_no_gradient_and_are_those_of_the_scorer(name, scorer, store):
    """leave_one_out: the posterior is the softmax of the loss without k, the negative log-likelihood without k."""
    objective, inputs = objective_of(name, "default", scorer, store), inputs_of(scorer, store)
    loglik_SK = objective(inputs).candidate_loglik_SK
    scores = inputs_of(scorer, store).candidates.scores
    expected_SK = -scores.without_SK if name == "leave_one_out" else scores.loglik_SK
    assert not loglik_SK.requires_grad
    torch.testing.assert_close(loglik_SK, expected_SK, rtol=1e-5, atol=1e-5)
    assert "loglik_SK" not in vars(inputs.candidates.scores) or name != "leave_one_out"  # nothing is scored in vain


class Careless:
    """An object that changes in one of the ways that `attributes` must notice."""

    def __init__(self):
        self.number, self.values, self.tensor = 1, [1], torch.zeros(1)

    @cached_property
    def cached(self):
        return 2


@pytest.mark.parametrize(
    ("change", "noticed"),
    [
        (lambda thing: setattr(thing, "number", 2), True),
        (lambda thing: setattr(thing, "new", 1), True),
        (lambda thing: thing.values.append(2), True),
        (lambda thing: thing.tensor.add_(1), True),
        (lambda thing: thing.cached, False),
    ],
)
def test_changes_are_noticed(change, noticed):
    thing = Careless()
    before = attributes(thing)
    change(thing)
    assert (attributes(thing) != before) is noticed
