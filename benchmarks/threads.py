"""Speed of training with one core busy, as a share of the speed on a free machine, for OpenMP's ways of waiting.

    python benchmarks/threads.py [--rounds 3]

A thread that waits in a barrier of OpenMP can spin or sleep. If another process uses a core, spinning threads keep the
working ones from running. The work is the training step of a small transformer with all threads, in a process of its
own; the busy process computes on one core. `OMP_WAIT_POLICY` of this process's environment is not used.
"""

import argparse
import os
import subprocess
import sys
import time

import dream.utils.runtime  # noqa: F401  before torch and numpy, as in every command

# isort: split
import torch

from dream.utils.logging import get_logger
from side_by_side import Row, record

log = get_logger(__name__)

POLICIES = ("active", "passive", "default")
WORK = """
import os, time
import dream.utils.runtime
import torch
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
config = LlamaConfig(vocab_size=8192, hidden_size=256, intermediate_size=1024, num_hidden_layers=4,
                     num_attention_heads=4, num_key_value_heads=4)
model = LlamaForCausalLM(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
ids = torch.randint(8192, (8, 160))
start, steps = None, 0
while start is None or time.perf_counter() - start < 8:
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    steps += 1
    if steps == 3:
        start = time.perf_counter()
print((steps - 3) / (time.perf_counter() - start))
"""


def speed(policy: str, busy: bool) -> float:
    """Steps per second. `default`: as DREAM's commands set it."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if policy != "default":
        environment["OMP_WAIT_POLICY"] = policy
    core = max(os.sched_getaffinity(0))
    other = [subprocess.Popen(["taskset", "-c", str(core), sys.executable, "-c", "while True: pass"])] if busy else []
    try:
        run = subprocess.run([sys.executable, "-c", WORK], env=environment, capture_output=True, text=True, check=True)
    finally:
        for process in other:
            process.kill()
            process.wait()
    return float(run.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    speeds: dict[tuple[str, bool], list[float]] = {}
    for _ in range(options.rounds):
        for policy in POLICIES:
            for busy in (False, True):
                speeds.setdefault((policy, busy), []).append(speed(policy, busy))
                log.info(f"  {policy}, {'one core busy' if busy else 'free'}: {speeds[policy, busy][-1]:.2f} steps/s")
                time.sleep(1)
    median = {key: sorted(values)[len(values) // 2] for key, values in speeds.items()}
    free = median["default", False]
    rows = [Row(f"training with one of {torch.get_num_threads()} cores busy, waiting: {policy}",
                f"{median[policy, True]:.2f} steps/s",
                f"free: {median[policy, False]:.2f} steps/s", median[policy, True] / free,
                0.45 if policy == "default" else None, floor="share of the free machine's speed as DREAM sets it")
            for policy in POLICIES]  # fmt: skip
    record("threads", rows)


if __name__ == "__main__":
    main()
