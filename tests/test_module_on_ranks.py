"""The same windows on one, two and four ranks: the same losses and gradients.

Run: pytest tests/test_module_on_ranks.py
"""

from collections.abc import Callable
from functools import cache
from itertools import product

import pytest
import torch
import torch.distributed as dist
from hydra import compose, initialize_config_dir
from tests.processes import run_ranks

from dream.build import build_module, build_text
from dream.module import RetrieverModule
from dream.utils import ranks
from dream.utils.runtime import CONFIG_DIR

LR = 0.5
OBJECTIVES = {
    "kl_posterior": [],
    "kl_posterior, scored windows only": ["objective.continuation=0", "candidates.hard_negatives=false"],
    "kl_posterior with a null passage": ["objective.unhelped_weight=0.5", "objective.null_similarity=0.1"],
    "marginal": [],
    "leave_one_out": ["objective.in_batch=false"],
    "joint_posterior": [],
    "attention": ["objective.heads=all"],
    "in_batch_attention": [],
    "info_nce": [],
}
SETTINGS = ["data.batch_size=16", "candidates.scored_windows=8", "candidates.k=4", "scorer.cache_megabytes=0",
            "scorer.scoring.compile=false", "scorer.scoring.max_passage_tokens=24"]  # fmt: skip


def module_of(overrides: list[str]) -> tuple[RetrieverModule, object]:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("train", overrides)
    torch.manual_seed(0)
    text = build_text(cfg)
    module = build_module(cfg, text).double()
    if module.objective.needs_candidates:
        module.scorer.model.double()  # its values then do not depend on the other windows of a batch
    if module.untrained:  # not a submodule
        module.untrained.encoder.double()
    return module, text.data


def steps_of(overrides: list[str], count: int = 3) -> list[tuple[float, torch.Tensor]]:
    """Loss and gradient of each step, on this rank: means over the ranks, as DistributedDataParallel takes them."""
    module, data = module_of(overrides)
    module.log = module.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    stream, steps = data.stream(ranks.rank(), ranks.world()), []  # type: ignore[attr-defined]
    for number in range(count):
        loss = module.training_step(stream.batch(number), number)["loss"]
        weights = [weight for weight in module.encoder.parameters() if weight.requires_grad]
        gradient = torch.cat([part.to_dense().flatten() for part in torch.autograd.grad(loss, weights)])
        if ranks.world() > 1:
            dist.all_reduce(gradient)
            gradient /= ranks.world()
        steps.append((ranks.mean({"loss": loss})["loss"].item(), gradient))
        start = 0
        with torch.no_grad():
            for weight in weights:
                weight -= LR * gradient[start : start + weight.numel()].view_as(weight)
                start += weight.numel()
    return steps


def steps_of_all(settings: dict[str, list[str]], count: int = 3) -> dict[str, list[tuple[float, torch.Tensor]]]:
    return {name: steps_of(overrides, count) for name, overrides in settings.items()}


@pytest.fixture(scope="module")
def settings(run_overrides, tmp_path_factory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("ranks")
    base = [*run_overrides, f"paths.data={folder / 'data'}", f"paths.logs={folder / 'logs'}",
            f"paths.run={folder / 'run'}", *SETTINGS]  # fmt: skip
    return {name: [*base, f"objective={name.split(',')[0].split()[0]}", *more] for name, more in OBJECTIVES.items()}


@pytest.fixture(scope="module")
def on_one(settings) -> Callable[[str, int], list[tuple[float, torch.Tensor]]]:
    return cache(lambda name, count: steps_of(settings[name], count))


ALL = [pytest.param(world, (name,), 20, marks=pytest.mark.slow) for world in (2, 4) for name in OBJECTIVES]


@pytest.mark.parametrize(("world", "names", "count"), [(2, ("kl_posterior", "in_batch_attention"), 3), *ALL])
def test_losses_and_gradients_do_not_depend_on_the_number_of_ranks(settings, on_one, tmp_path, world, names, count):
    """Ranks have different numbers of distinct candidates. In float64."""
    expected = {name: on_one(name, count) for name in names}
    results = run_ranks(world, tmp_path / "job", steps_of_all, {name: settings[name] for name in names}, count)
    for name, step in product(names, range(count)):
        loss, gradient = expected[name][step]
        for result in results:
            other_loss, other_gradient = result[name][step]
            assert other_loss == pytest.approx(loss, rel=1e-6), (name, step)
            assert (other_gradient - gradient).norm() <= 1e-6 * gradient.norm(), (name, step)
