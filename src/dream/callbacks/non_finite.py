"""Stops a run before the optimizer step if a value is inf or nan."""

import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from dream.batch import WindowBatch
from dream.encoders.sharded import assembled, own_part
from dream.store.store import Store
from dream.utils.atomic_io import write_json
from dream.utils.errors import NumericalError

REPORT = "non_finite.json"  # in the run's folder
WINDOWS = 16  # broken windows that are described in full; the others are listed by id
CHARACTERS = 160  # quoted from a context, target or passage in the report
CHECKED = {"loss": "loss", "query_BD": "embedding", "loglik_SK": "log-likelihood", "sim_SK": "similarity"}


class NonFiniteGuard(L.Callback):
    """Raises NumericalError if a loss, embedding, log-likelihood, similarity or gradient is inf or nan.

    The weights stay as they were before the step. If the step itself broke them, they are not saved, so the last
    checkpoint can always be resumed. `non_finite.json` in the run's folder lists the windows of the step, and describes
    the first `WINDOWS` broken ones. With precision=16-mixed, gradients may overflow: the gradient scaler skips that
    step.

    Reads `pl_module.outputs`, the tensors that `training_step` returned. Logs `train/gradient_norm`, before clipping.

    Order: before the checkpoints, which Lightning calls last.

    Raises:
        NumericalError: one line with the key to change, its value, and the path of the report.
    """

    def __init__(self) -> None:
        self._batch: WindowBatch | None = None

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: WindowBatch, batch_idx: int) -> None:
        self._batch = batch

    def on_before_backward(self, trainer: L.Trainer, pl_module: Any, loss: Tensor) -> None:
        # A sum is finite only if all its terms are finite. Summing takes a tenth of the time of checking each term.
        sums = torch.stack([pl_module.outputs[name].sum() for name in CHECKED if name in pl_module.outputs])
        finite = bool(sums.sum().isfinite())  # one wait for the device
        if trainer.strategy.reduce_boolean_decision(not finite, all=False):
            if finite:
                raise NumericalError("another process of this run found inf or nan: see its message")
            raise self._stop(trainer, pl_module, _cause_in_forward(pl_module), {})

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = assembled(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            pl_module.log("train/gradient_norm", norm)
        if getattr(trainer.precision_plugin, "scaler", None) is None and not norm.isfinite():
            broken = [name for name, p in pl_module.named_parameters() if p.grad is not None and not _is_finite(p.grad)]
            rate = _learning_rate(optimizer)
            cause = (f"optimizer.optimizer.lr={rate}: the norm of the gradient is {norm.item()} although the loss is "
                     f"finite ({', '.join(broken) or 'its square overflows'}); lower it, or raise "
                     f"objective.temperature={pl_module.objective.temperature}")  # fmt: skip
            raise self._stop(trainer, pl_module, cause, {"gradient_norm": str(norm.item()), "parameters": broken})

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        weights = {name: weight for name, weight in checkpoint["state_dict"].items() if isinstance(weight, Tensor)}
        broken = [name for name, weight in weights.items() if not _is_finite(weight)]
        if broken:
            cause = _cause_in_weights(pl_module, broken)
            raise self._stop(trainer, pl_module, cause, {"parameters": broken})

    def _stop(self, trainer: L.Trainer, pl_module: Any, cause: str, found: dict[str, Any]) -> NumericalError:
        """Write the report; return the error to raise."""
        batch, outputs = self._batch, pl_module.outputs
        content = {"step": trainer.global_step, "cause": cause, "loss": _number(outputs.get("loss", math.nan))} | found
        if batch is not None:
            broken_B = _broken_windows(pl_module, batch)
            ids_B = batch.window_ids_B.cpu()
            shown = broken_B.nonzero()[:, 0] if broken_B.any() else torch.arange(len(batch))
            content |= {
                "broken_window_ids": ids_B[broken_B].tolist(),
                "window_ids": ids_B.tolist(),
                "windows": [self._window(pl_module, ids_B, row) for row in shown[:WINDOWS].tolist()],
            }
        report = Path(trainer.default_root_dir) / REPORT
        write_json(report, content)
        return NumericalError(f"{cause}. Stopped before step {trainer.global_step + 1}; its windows and candidates are "
                              f"in {report}; the weights in all checkpoints are finite")  # fmt: skip

    def _window(self, pl_module: Any, ids_B: Tensor, row: int) -> dict[str, Any]:
        store: Store = pl_module.store
        window_id, outputs = int(ids_B[row]), pl_module.outputs
        context, target = store.window_text(window_id)
        candidates = []
        if row < len(outputs.get("candidate_ids_SK", ())):
            for k, passage_id in enumerate(outputs["candidate_ids_SK"][row].tolist()):
                candidates.append({
                    "passage_id": passage_id,
                    "loglik": _number(outputs["loglik_SK"][row, k]) if "loglik_SK" in outputs else None,
                    "sim": _number(outputs["sim_SK"][row, k]),
                    "text": store.passage_text(passage_id)[: CHARACTERS] if passage_id >= 0 else "",
                })  # fmt: skip
        return {
            "window_id": window_id,
            "document": store.document_names[store.document_of(window_id)],
            "context": context[-CHARACTERS:],
            "target": target[:CHARACTERS],
            "candidates": candidates,
        }


def _cause_in_forward(pl_module: Any) -> str:
    """The key to change, its value, what is broken, and the remedy. Checks in the order of computation."""
    outputs = pl_module.outputs
    if not _is_finite(outputs.get("loglik_SK")):
        return _cause_in_scorer(pl_module.scorer, _values(outputs["loglik_SK"]))
    if broken := [name for name, weight in pl_module.named_parameters() if not _is_finite(weight)]:
        return _cause_in_weights(pl_module, broken)
    for name in ("query_BD", "sim_SK"):
        if not _is_finite(outputs.get(name)):
            return _cause_in_encoder(pl_module, f"{_values(outputs[name])} as {CHECKED[name]}")
    return (f"objective.temperature={pl_module.objective.temperature}: the loss is {outputs['loss'].item()}; raise it, "
            "or fix the objective or the encoder's embedding of the continuations")  # fmt: skip


def _cause_in_scorer(scorer: Any, values: str) -> str:
    model, dtype = getattr(scorer, "model", None), getattr(getattr(scorer, "model", None), "dtype", torch.float32)
    broken = [name for name, weight in model.named_parameters() if not _is_finite(weight)] if model else []
    says = f"the language model gives {values} as log-likelihood"
    if broken or dtype == torch.float32:
        why = f"because its weights are not finite ({', '.join(broken[:3])})" if broken else "although it is in float32"
        return f"scorer.name={getattr(scorer, 'name', type(scorer).__name__)}: {says}, {why}; take another model"
    return f"scorer.scoring.dtype={str(dtype).removeprefix('torch.')}: {says}; choose float32, or another model"


def _cause_in_encoder(pl_module: Any, gives: str) -> str:
    """The weights are finite, but the result is not. Weights are too large, or the precision's range is too small."""
    largest = max(own_part(weight).abs().max().item() for weight in pl_module.parameters())
    says = f"the encoder, whose largest weight is {largest:.2g}, gives {gives}"
    if (precision := str(pl_module.trainer.precision)).startswith(("32", "64")):
        return f"optimizer.optimizer.lr={_learning_rate(pl_module.trainer.optimizers[0])}: {says}; lower it"
    return f"trainer.precision={precision}: {says}; choose 32-true"


def _cause_in_weights(pl_module: Any, broken: list[str]) -> str:
    rate = _learning_rate(pl_module.trainer.optimizers[0])
    return f"optimizer.optimizer.lr={rate}: training has diverged, {', '.join(broken)} are not finite; lower it"


@torch.no_grad()
def _broken_windows(pl_module: Any, batch: WindowBatch) -> Tensor:
    """broken_B, on the CPU: whether a value of the window's query, candidates or continuation is not finite."""
    outputs = pl_module.outputs
    finite_B = outputs["query_BD"].isfinite().all(1)
    for name in ("loglik_SK", "sim_SK"):
        if name in outputs:
            finite_B[: len(outputs[name])] &= outputs[name].isfinite().all(1)
    if pl_module.objective.needs_continuation and pl_module.sharded is None:  # one rank alone has no whole encoder
        finite_B &= pl_module.encoder(batch.continuation, "passage").isfinite().all(1)
    return ~finite_B.cpu()


def _is_finite(values: Tensor | None) -> bool:
    return values is None or bool(own_part(values).isfinite().all())


def _values(values: Tensor) -> str:
    """The kinds of non-finite values, e.g. "-inf and nan"."""
    return " and ".join(sorted({str(value) for value in values[~values.isfinite()].tolist()}))


def _number(value: Tensor | float) -> float | str:
    """JSON has no inf and no nan: they become strings."""
    number = value.item() if isinstance(value, Tensor) else value
    return number if math.isfinite(number) else str(number)


def _learning_rate(optimizer: Any) -> float:
    """The configured learning rate, before the schedule."""
    group = optimizer.param_groups[0]
    return group.get("initial_lr", group["lr"])
