"""Training steps against what a user would run instead. Needs SmolLM2 (`make smollm2`).

    pip install 'dream-retrieval[bench]'
    python benchmarks/steps.py --model NAME_OR_PATH [--device cuda --steps 40] [--old FOLDER] [--run FOLDER ...]
        [overrides of dream-train]

1. A transformer, 64 queries with one positive and 4 hard negatives each, against sentence-transformers' trainer with
   MultipleNegativesRankingLoss on the same texts; float32 (on a GPU: bf16-mixed), AdamW, no evaluation, nothing is
   saved. Our default is no dropout; the other trainer is measured with the model's own dropout, which is its default,
   and without.
2. With --old: the static encoder of the quickstart, without scored windows, against a checkout of an older commit with
   the same Python: `git worktree add FOLDER 54449b6`. Each run has 40 steps; the median of the logged speeds counts.
3. With --run: folders of finished runs, for the share of a step that is neither encoder, scorer, loss nor optimizer.

Each of the three has a table of its own in README.md.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import dream.utils.runtime  # noqa: F401  before torch and numpy, as in every command

# isort: split
import lightning as L
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from dream.build import build_module, build_text
from dream.encoders.dropout import choose_dropout
from dream.store.store import ENCODER
from dream.utils.logging import get_logger
from dream.utils.runtime import CONFIG_DIR, project_root
from side_by_side import ROUNDS, Row, alternate, record

log = get_logger(__name__)

QUERIES, NEGATIVES = 64, 4
STATIC = ["experiment=quickstart", "candidates.scored_windows=0", "trainer.max_steps=40", "logger=csv",
          "callbacks.index_refresh.every_n_steps=0", "evaluation.dev_split=none",
          "evaluation.report_split=none"]  # fmt: skip


class OurSteps:
    """Steps by Lightning's trainer, as in dream-train, without callbacks."""

    def __init__(self, model: str, overrides: list[str], steps: int, device: str) -> None:
        self.steps, self.device = steps, device
        chosen = ["experiment=quickstart", "encoder=hf", f"encoder.name={model}", "candidates=bm25",
                  f"candidates.k={NEGATIVES}", f"data.batch_size={QUERIES}", "optimizer.optimizer.lr=1e-5"]  # fmt: skip
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            cfg = compose("train", [*chosen, "paths.run=/nowhere", *overrides])
        self.text = build_text(cfg)
        self.module = build_module(cfg, self.text)

    def __call__(self) -> None:
        precision: Any = "32-true" if self.device == "cpu" else "bf16-mixed"
        trainer = L.Trainer(
            max_steps=self.steps, accelerator=self.device, precision=precision, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            use_distributed_sampler=False,
        )  # fmt: skip
        self.text.data.consumed = 0
        trainer.fit(self.module, self.text.data)

    def texts(self) -> dict[str, list[str]]:
        """The texts of the steps: anchor, positive, negative_0 to negative_3."""
        stream, store, tokenizer = self.text.data.stream(0, 1), self.module.store, self.module.encoder.tokenizer
        columns: dict[str, list[str]] = {"anchor": [], "positive": []}
        for number in range(self.steps):
            batch = stream.batch(number)
            for name, tokens in (("anchor", batch.context), ("positive", batch.continuation)):
                ids = [row[mask].tolist() for row, mask in zip(tokens.ids_BT, tokens.mask_BT.bool(), strict=True)]
                columns[name] += tokenizer.batch_decode(ids)
            proposed_PK = self.module.candidates.propose(batch, torch.empty(len(batch), 0), number, 0)
            for k in range(NEGATIVES):
                passages = [store.passage_tokens(int(row), ENCODER) for row in proposed_PK[:, k]]
                columns.setdefault(f"negative_{k}", []).extend(tokenizer.batch_decode(passages))
        return columns


class PeerSteps:
    """The same number of steps by sentence-transformers' trainer. Dropout None: as published."""

    def __init__(
        self, model: str, texts: dict[str, list[str]], scratch: str, dropout: float | None, steps: int, device: str
    ) -> None:
        from datasets import Dataset
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.losses import MultipleNegativesRankingLoss

        self.model, self.data = SentenceTransformer(model, device=device), Dataset.from_dict(texts)
        self.scratch, self.steps, self.device = scratch, steps, device
        choose_dropout(self.model, dropout)
        self.loss = MultipleNegativesRankingLoss(self.model)

    def __call__(self) -> None:
        from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

        arguments = SentenceTransformerTrainingArguments(
            self.scratch, max_steps=self.steps, per_device_train_batch_size=QUERIES, learning_rate=1e-5,
            use_cpu=self.device == "cpu", bf16=self.device != "cpu", save_strategy="no", report_to=[],
            disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        SentenceTransformerTrainer(self.model, arguments, self.data, loss=self.loss).train()


def transformer(model: str, overrides: list[str], rounds: int, steps: int, device: str) -> list[Row]:
    ours = OurSteps(model, overrides, steps, device)
    texts = ours.texts()
    distinct = len({text for k in range(NEGATIVES) for text in texts[f"negative_{k}"]}) / steps
    with tempfile.TemporaryDirectory() as scratch:
        peers = {"its defaults": None, "without dropout": 0.0}
        run: dict[str, Any] = {"dream": ours}
        for name, dropout in peers.items():
            run[name] = PeerSteps(model, texts, scratch, dropout, steps, device)
        seconds = alternate(run, rounds)
    each = {name: value / steps for name, value in seconds.items()}
    return [Row(f"training step, {Path(model).name}, {QUERIES} queries, {NEGATIVES} hard negatives each",
                f"{each['dream']:.2f} s", f"MultipleNegativesRankingLoss, {name}: {each[name]:.2f} s",
                each[name] / each["dream"], 1.3,
                floor=f"{distinct:.0f} of {QUERIES * NEGATIVES} negatives are distinct, and embedded once")
            for name in peers]  # fmt: skip


def static_speed(source: Path, module: str, overrides: list[str]) -> float:
    """Median of the logged windows per second of a run by the code in `source`."""
    with tempfile.TemporaryDirectory() as logs:
        words = [*overrides, f"paths.logs={logs}", f"paths.run={logs}/run"]
        environment = {**os.environ, "PYTHONPATH": str(source / "src")}
        subprocess.run([sys.executable, "-m", module, *words], env=environment, cwd=source, check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        (file,) = Path(logs).glob("**/metrics.csv")
        rows = [row["perf/windows_per_second"] for row in csv.DictReader(file.open())]
        return statistics.median(float(value) for value in rows if value)


def static(old: Path, overrides: list[str], rounds: int) -> Row:
    model = project_root() / "data" / "models" / "smollm2-135m-instruct"
    old_words = [word.replace("index_refresh", "refresh") for word in STATIC if word != "experiment=quickstart"]
    sides = {
        "dream": (project_root(), "dream.commands.train", STATIC),
        "old": (old, "dream.train", [*old_words, "scorer=hf", f"scorer.name={model}"]),
    }
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, (source, module, words) in sides.items():
            speed = static_speed(source, module, [*words, *overrides])
            if number:  # the first run prepares the store
                speeds[name].append(speed)
                log.info(f"  {name}: {speed:.0f} windows/s")
    speed = {name: statistics.median(values) for name, values in speeds.items()}
    return Row("training step, static, 256 windows, no language model", f"{256e3 / speed['dream']:.0f} ms",
               f"itself at the older commit: {256e3 / speed['old']:.0f} ms", speed["dream"] / speed["old"],
               4.0)  # fmt: skip


def overhead(folder: Path) -> Row:
    """The share of propose, data, logging and other callbacks in the time of the steps.

    The bar is for steps with a language model or a transformer: a static encoder alone has next to no step.
    """
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    cfg = OmegaConf.load(folder / "config.yaml")
    shares = {name[14:]: value for name, value in summary.items() if name.startswith("perf/fraction_")}
    outside = shares["propose"] + shares["data"] + shares["other"]
    inside = sum(shares[part] for part in ("encode", "score", "backward", "optimizer"))
    share = outside / (outside + inside)
    seconds = summary["wall_seconds"] * outside / summary["steps"]
    parts = ["static encoder" if "static" in cfg.encoder._target_ else "transformer"]
    parts += ["language model"] if shares["score"] > 0.01 else []
    return Row(f"outside of encoder, scorer and optimizer: {cfg.name}, {summary['steps']} steps, {' and '.join(parts)}",
               f"{1000 * seconds:.0f} ms a step", "of a step's time", share,
               None if parts == ["static encoder"] else 0.1, at_most=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a sentence-transformers model")
    parser.add_argument("--old", type=Path, help="checkout of an older commit")
    parser.add_argument("--run", type=Path, nargs="*", default=[], help="folders of finished runs")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--device", default="cpu", help="of the transformer's steps: cpu or cuda")
    parser.add_argument("--steps", type=int, default=2, help="of the transformer, in each round")
    options, overrides = parser.parse_known_args()
    if options.run:
        record("steps_overhead", [overhead(folder) for folder in options.run])
    if options.model:
        name = "steps" if options.device == "cpu" else "steps_gpu"
        record(name, transformer(options.model, overrides, options.rounds, options.steps, options.device))
    if options.old:
        record("steps_static", [static(options.old.resolve(), overrides, options.rounds)])


if __name__ == "__main__":
    main()
