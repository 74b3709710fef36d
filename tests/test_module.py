"""The training step, and fp16 training with a fused optimizer. Run: pytest tests/test_module.py"""

import inspect

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector

from dream.module import RetrieverModule

pytest_plugins = ["tests.callbacks.conftest"]
SCALE = 1024.0  # the loss scale; fp16 gradients do not overflow with it


@pytest.fixture
def clipped_norms(train_retriever, monkeypatch):
    """clipped_norms(run, precision, fused) → (norm of the gradient before each clipping, metrics)

    Lightning refuses precision=16-mixed on a CPU, so its plugin is replaced by one with a gradient scaler for CPUs.
    """
    choose = _AcceleratorConnector._check_and_init_precision

    def choose_on_cpu(self):
        if self._precision_flag != "16-mixed":
            return choose(self)
        return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=SCALE))

    monkeypatch.setattr(_AcceleratorConnector, "_check_and_init_precision", choose_on_cpu)

    def run(name: str, precision: str, fused: bool):
        norms, clip = [], torch.nn.utils.clip_grad_norm_

        def recorded(parameters, *arguments):
            norms.append(clip(parameters, *arguments).item())

        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.utils, "clip_grad_norm_", recorded)
            options = [f"trainer.precision={precision}", f"optimizer.optimizer.fused={str(fused).lower()}"]
            _, trainer = train_retriever(name, *options, "trainer.max_steps=3")
        return norms, trainer.callback_metrics

    return run


@pytest.mark.parametrize("fused", [True, False])
def test_unscaled_gradients_are_logged_and_clipped(clipped_norms, fused) -> None:
    """In fp16, the norms are those of float32 within the precision of fp16, not SCALE times as large."""
    exact, _ = clipped_norms("float32", "32-true", fused)
    norms, metrics = clipped_norms("fp16", "16-mixed", fused)
    assert len(norms) == 3
    assert norms == pytest.approx(exact, rel=0.05)
    assert metrics["train/gradient_norm"].item() == pytest.approx(norms[-1], rel=1e-5)


def test_the_training_step_is_short() -> None:
    assert len(inspect.getsource(RetrieverModule.training_step).splitlines()) <= 20
