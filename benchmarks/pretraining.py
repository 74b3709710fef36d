"""Pretraining of the scratch scorer against transformers' Trainer: the same model, sequences and optimizer.

    python benchmarks/pretraining.py [--steps 30] [overrides of dream-train]

DREAM compiles the loss, computes logits only for the rows that have a loss, and uses bfloat16 where it is fast. The
Trainer has its defaults, and gets the same sequences; labels are -100 in rows without a loss. Tokens per second are
those after the first steps, in which kernels are compiled.
"""

import argparse
import copy
import tempfile
import time
from typing import Any

import dream.utils.runtime  # noqa: F401  before torch and numpy, as in every command

# isort: split
import torch
from hydra import compose, initialize_config_dir
from torch.nn import functional as F

from dream.build import build_text
from dream.indexes.bm25 import BM25Index
from dream.scorers.pretraining.curriculum import CopyCurriculum
from dream.scorers.pretraining.module import LanguageModelModule
from dream.scorers.pretraining.scratch import PASSAGES, SHARES, SPAN_TOKENS
from dream.utils.logging import get_logger
from dream.utils.runtime import CONFIG_DIR, has_fast_bfloat16
from side_by_side import Row, alternate, record

log = get_logger(__name__)

LEARNING_RATE = 3e-3


class Ours:
    """The training step of `LanguageModelModule`, in the same loop as dream-pretrain's, without checkpoints."""

    def __init__(self, module: LanguageModelModule, sequences: torch.Tensor) -> None:
        self.module, self.sequences = module, sequences
        matrices = [weight for weight in module.model.parameters() if weight.ndim >= 2]
        vectors = [weight for weight in module.model.parameters() if weight.ndim < 2]
        self.optimizer = torch.optim.AdamW([{"params": matrices}, {"params": vectors}], lr=LEARNING_RATE, fused=True)
        self.loss = torch.compile(module._loss, dynamic=False)

    def __call__(self) -> None:
        for ids_BT in self.sequences:
            with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bfloat16("cpu")):
                loss = self.loss(ids_BT)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()


class Stock:
    """transformers' Trainer with its defaults."""

    def __init__(self, model: Any, sequences: torch.Tensor, window: int, scratch: str) -> None:
        self.model, self.scratch, self.batch = model, scratch, sequences.shape[1]
        labels = F.pad(sequences[..., -window:], (sequences.shape[2] - window, 0), value=-100)
        rows = zip(sequences.flatten(0, 1), labels.flatten(0, 1), strict=True)
        self.data = [{"input_ids": ids_T, "labels": labels_T} for ids_T, labels_T in rows]
        self.steps = len(sequences)

    def __call__(self) -> None:
        from transformers import Trainer, TrainingArguments

        arguments = TrainingArguments(
            self.scratch, max_steps=self.steps, per_device_train_batch_size=self.batch, learning_rate=LEARNING_RATE,
            save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        Trainer(self.model, arguments, train_dataset=self.data).train()  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    options, overrides = parser.parse_known_args()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("train", ["experiment=scratch", "paths.run=/nowhere", *overrides])
    text = build_text(cfg)
    scorer: Any = text.scorer
    settings, store = scorer.training, text.store
    curriculum = CopyCurriculum(
        store, BM25Index.open_or_build(store), scorer.prompt, passage_tokens=scorer.scoring.max_passage_tokens,
        shares=SHARES, span_tokens=SPAN_TOKENS, multi_passage_fraction=0.0, passages=PASSAGES, steps=settings.max_steps,
        batch_size=settings.batch_size, seed=0,
    )  # fmt: skip
    start = time.perf_counter()
    sequences = torch.stack([curriculum.batch(number * settings.batch_size) for number in range(options.steps)])
    log.info(f"{options.steps} batches of {tuple(sequences.shape[1:])} in {time.perf_counter() - start:.1f} s")
    model = scorer._new_model(store)
    module = LanguageModelModule(copy.deepcopy(model), curriculum, settings, "auto")
    with tempfile.TemporaryDirectory() as scratch:
        contestants = {
            "dream": Ours(module, sequences),
            "Trainer": Stock(model, sequences, curriculum.window_tokens, scratch),
        }
        seconds = alternate(contestants)
    rate = {name: sequences.numel() / value for name, value in seconds.items()}
    record("pretraining", [Row("pretraining of the scratch scorer", f"{rate['dream']:,.0f} tokens/s",
                               f"transformers' Trainer: {rate['Trainer']:,.0f} tokens/s",
                               rate["dream"] / rate["Trainer"], 2.5)])  # fmt: skip


if __name__ == "__main__":
    main()
