"""Exchanges between the ranks of a job. Run: pytest tests/utils/test_ranks.py"""

import os

import pytest
import torch
from tests.processes import run_ranks

from dream.commands.app import refuse_sweep_of_ranks
from dream.utils import ranks
from dream.utils.errors import ConfigError, DreamError
from dream.utils.launch import joined


def exchange() -> dict:
    """Each function once. The loss of rank r is Σ_m weight_m · x_m · (r + 1) over the gathered rows x."""
    rank, order = ranks.rank(), []
    zeros_id = ranks.on_rank_zero(lambda: order.append("first") or os.getpid())
    ranks.in_turn(lambda: order.append("in turn"))
    x_N1 = torch.tensor([[10.0 * rank], [10.0 * rank + 1]], requires_grad=True)
    x_M1 = ranks.gather(x_N1)
    weight_M1 = torch.tensor([[1.0], [2.0], [3.0], [4.0]])  # of rank 0's rows, then rank 1's
    ((ranks.gather(x_N1, own_first=False) * weight_M1).sum() * (rank + 1)).backward()
    shared = torch.full((2,), float(rank))
    ranks.share([shared])
    return {
        "zeros_id": zeros_id,
        "order": order,
        "gathered": x_M1[:, 0].tolist(),
        "gradient": x_N1.grad[:, 0].tolist(),
        "everyone": ranks.everyone(rank * 2),
        "largest": ranks.largest([rank, -rank]),
        "mean": {name: value.item() for name, value in ranks.mean({"a": torch.tensor(rank + 1.0)}).items()},
        "shared": shared.tolist(),
        "speaks": ranks.speaks(),
    }


def test_ranks_exchange_values_and_gradients(tmp_path):
    """By hand: the gradient of row m is weight_m · (1 + 2)."""
    zero, one = run_ranks(2, tmp_path / "job", exchange)
    assert zero["zeros_id"] == one["zeros_id"]
    assert (zero["order"], one["order"]) == (["first", "in turn"], ["in turn"])
    assert (zero["gathered"], one["gathered"]) == ([0, 1, 10, 11], [10, 11, 0, 1])
    assert (zero["gradient"], one["gradient"]) == ([3, 6], [9, 12])
    assert (zero["speaks"], one["speaks"]) == (True, False)
    for result in (zero, one):
        assert result["everyone"] == [0, 2]
        assert result["largest"] == [1, 0]
        assert result["mean"] == {"a": 1.5}
        assert result["shared"] == [0, 0]


def test_one_process_does_everything_itself():
    rows = torch.ones(2, 3)
    assert (ranks.rank(), ranks.world(), ranks.everyone(7), ranks.on_rank_zero(lambda: 1)) == (0, 1, [7], 1)
    assert ranks.gather(rows) is rows


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook"])
def test_copies_of_this_process_are_refused(strategy):
    settings = {"accelerator": "cpu", "devices": 2, "strategy": strategy}
    with pytest.raises(ConfigError, match=f"^trainer.strategy={strategy}: .*choose ddp"), joined(settings, ""):
        pass


def test_processes_of_torchrun_that_would_not_know_each_other_are_refused(monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    remedy = "trainer.devices=2 trainer.num_nodes=2"
    with pytest.raises(ConfigError, match=remedy), joined({"accelerator": "cpu", "devices": 1}, ""):
        pass


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_a_sweep_under_a_launcher_is_refused(monkeypatch, variable):
    refuse_sweep_of_ranks(["dream-train", "-m", "seed=0,1"])
    monkeypatch.setenv(variable, "2")
    refuse_sweep_of_ranks(["dream-train", "seed=0"])
    with pytest.raises(DreamError, match="^-m: the launcher has started 2 processes"):
        refuse_sweep_of_ranks(["dream-train", "-m", "seed=0,1"])
