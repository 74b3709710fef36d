"""Measures how fast pairs are scored, and whether their log-likelihoods are right.

    python benchmarks/scoring.py scorer=hf scorer.name=... corpus=... [dtypes=float32,int8] [windows=32] [passages=32]
        [context=0 targets=6-16] [device=cuda dtypes=float32,bfloat16]

The pairs are those of a step whose windows are neighbours: the best BM25 passages of a window, and windows of the same
documents. Passages have 64 to 96 tokens, contexts at most `context=12`, targets `targets=8-48`. `context=0
targets=6-16` makes targets as short as questions. The output also says how many times fewer operations shared passages
need. The baseline is a plain loop of transformers: pairs sorted by length, batches of 16, float32, only the rows of the
target go through the vocabulary. It scores `plain_pairs=128` of the pairs, others in each round. Each round measures
all in turn; printed are medians of the rounds. With one thread, time is the processor's time of this process, so other
processes disturb less. Other overrides are those of dream-train.
"""

import statistics
import sys
import time
from collections.abc import Callable

import dream.utils.runtime  # noqa: F401  before torch and numpy, as in every command

# isort: split
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from dream.commands.app import command
from dream.utils.logging import get_logger
from side_by_side import product_peak

log = get_logger(__name__)

ROUNDS, BATCH = 5, 16
PASSAGE_TOKENS = (64, 96)
OPTIONS = {"dtypes": "float32,int8", "windows": "32", "passages": "32", "plain_pairs": "128", "context": "12",
           "targets": "8-48", "device": "cpu"}  # fmt: skip
KEYS = ("scorer.scoring.template", "scorer.scoring.compile", "scorer.scoring.tokens_per_forward", "data.context_tokens")


def neighbourhood(store, windows: int, passages: int) -> tuple[np.ndarray, np.ndarray]:
    """(windows_W, passages_K): the best passages of the first window that has enough, and windows of their documents"""
    from dream.indexes.bm25 import BM25Index
    from dream.store.permutation import permute

    index = BM25Index.open_or_build(store)
    for seed in permute(0, np.arange(min(200, len(store.windows))), len(store.windows)).tolist():
        _, ids_1K = index.search([" ".join(store.window_text(seed))], 4 * passages)
        ids_K = ids_1K[0][ids_1K[0] >= 0]
        long = [row for row in ids_K if np.diff(store.passages["tokens"][row, 1]) >= PASSAGE_TOKENS[0]]
        near = np.flatnonzero(np.isin(store.windows["document"], store.passage_documents[ids_K]))
        if len(long) >= passages and len(near) >= windows:
            return np.random.default_rng(0).permutation(near)[:windows], np.array(long[:passages])
    sys.exit("no neighbourhood has enough windows and passages; choose fewer")


def sequences_of(scorer, store, windows_W: np.ndarray, passages_K: np.ndarray) -> tuple[list, list[int], list[int]]:
    """(token ids, number of target tokens, number of tokens before the context) of each pair"""
    from dream.store.store import SCORER

    draw = np.random.default_rng(0)
    fewest, most = map(int, OPTIONS["targets"].split("-"))
    longest_K = draw.integers(PASSAGE_TOKENS[0], PASSAGE_TOKENS[1] + 1, size=len(passages_K))
    sequences, targets, shared = [], [], []
    for window in windows_W.tolist():
        context, target = store.window_tokens(window, SCORER)
        context = context[len(context) - min(len(context), int(OPTIONS["context"])) :]
        target = target[: draw.integers(fewest, most + 1)]
        for passage, longest in zip(passages_K.tolist(), longest_K.tolist(), strict=True):
            tokens = store.passage_tokens(passage, SCORER)[:longest]
            sequences.append(scorer.prompt.join(tokens, context, target))
            targets.append(len(target))
            shared.append(len(sequences[-1]) - len(target) - len(context))
    return sequences, targets, shared


@torch.no_grad()
def plain_loop(model, sequences: list[np.ndarray], targets: list[int]) -> np.ndarray:
    """loglik_P"""
    loglik_P = np.zeros(len(sequences))
    order_P = np.argsort([len(sequence) for sequence in sequences], kind="stable")
    for start in range(0, len(order_P), BATCH):
        pairs = order_P[start : start + BATCH].tolist()
        ids = [torch.from_numpy(sequences[pair]).to(model.device) for pair in pairs]
        ids_PT = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        hidden_PTD = model.base_model(input_ids=ids_PT, use_cache=False).last_hidden_state
        rows = [torch.arange(len(text) - targets[pair], len(text)) for text, pair in zip(ids, pairs, strict=True)]
        hidden_RD = torch.cat([hidden_TD[row - 1] for hidden_TD, row in zip(hidden_PTD, rows, strict=True)])
        labels_R = torch.cat([text[row] for text, row in zip(ids, rows, strict=True)])
        loglik_R = model.get_output_embeddings()(hidden_RD).log_softmax(1).gather(1, labels_R[:, None])[:, 0]
        sums = [part.sum().item() for part in loglik_R.split([targets[pair] for pair in pairs])]
        loglik_P[pairs] = sums
    return loglik_P


def rank_correlation(first_WK: np.ndarray, second_WK: np.ndarray) -> float:
    """Spearman's correlation within windows, mean over windows."""
    ranks = [scores_WK.argsort(1).argsort(1) for scores_WK in (first_WK, second_WK)]
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(*ranks, strict=True)]))


def clock() -> float:
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def timed(run: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    start = clock()
    result = run()
    return clock() - start, result


def work(model, tokens: float, rows: float) -> float:
    """FLOP of the matrix products, without attention scores, of this many tokens and target rows."""
    head = model.get_output_embeddings().weight.numel()
    table = model.get_input_embeddings().weight.numel()
    matrices = sum(weight.numel() for weight in model.parameters() if weight.ndim == 2) - table
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return 2 * ((matrices - (0 if tied else head)) * tokens + head * rows)


def read_tokens(sequences: list[np.ndarray], shared: list[int]) -> int:
    """Number of tokens that have to be read if beginnings are read once."""
    beginnings = {sequence[:cut].tobytes(): cut for sequence, cut in zip(sequences, shared, strict=True)}
    return sum(map(len, sequences)) - len(sequences) - sum(shared) + sum(beginnings.values())


def compare(plain, scorers: dict, pairs: tuple[list, list[int], list[int]], sample: int) -> dict:
    """Measure all in turn. Returns medians of the seconds a pair, the scores, and the first scorer's largest error."""
    sequences, targets, shared = pairs
    runs = {name: lambda scorer=scorer: scorer.score_sequences(sequences, targets, shared=shared)
            for name, scorer in scorers.items()}  # fmt: skip
    inner = getattr(plain.config.get_text_config(), "intermediate_size", None) or 4 * plain.config.hidden_size
    scored = {name: run() for name, run in runs.items()}  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in ("plain", *scorers)}
    peaks, errors, draw = [], [], np.random.default_rng(0)
    for _ in range(ROUNDS):
        chosen = draw.permutation(len(sequences))[:sample].tolist()
        start = clock()
        expected_P = plain_loop(plain, [sequences[pair] for pair in chosen], [targets[pair] for pair in chosen])
        seconds["plain"].append((clock() - start) / len(chosen))
        for name, run in runs.items():
            took, scored[name] = timed(run)
            seconds[name].append(took / len(sequences))
        errors.append(np.abs(scored[next(iter(scored))][chosen] / expected_P - 1).max())
        peaks.append(product_peak(torch.float32, 2048, plain.config.hidden_size, inner, OPTIONS["device"], clock))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"seconds": medians, "scored": scored, "error": max(errors), "peak": statistics.median(peaks)}


def show(plain, pairs: tuple[list, list[int], list[int]], shape: tuple[int, int], found: dict) -> None:
    sequences, targets, shared = pairs
    tokens, rows, peak = statistics.mean(map(len, sequences)), statistics.mean(targets), found["peak"]
    log.info(f"{shape[0]} windows x {shape[1]} passages; a pair has {tokens:.0f} tokens, {rows:.0f} of them target; "
             f"{torch.get_num_threads()} threads; float32 matrix products: {peak / 1e9:.0f} GFLOP/s")  # fmt: skip
    first = next(iter(found["scored"]))
    reference_WK = found["scored"][first].reshape(shape)
    for name, seconds in found["seconds"].items():
        read = tokens if name == "plain" else read_tokens(sequences, shared) / len(sequences)
        line = (f"{name:9} {1 / seconds:7.2f} pairs/s, {found['seconds']['plain'] / seconds:5.2f} x plain, "
                f"{work(plain, read, rows) / seconds / peak:4.0%} of that speed")  # fmt: skip
        if name not in ("plain", first):
            correlation = rank_correlation(found["scored"][name].reshape(shape), reference_WK)
            line += f", rank correlation with {first} {correlation:.4f}"
        log.info(line)
    saved = work(plain, tokens, rows) / work(plain, read_tokens(sequences, shared) / len(sequences), rows)
    log.info(f"shared passages need {saved:.2f} times fewer operations than separate pairs")
    log.info(f"{first}: largest relative difference from the plain loop {found['error']:.1e}; standard deviation "
             f"within windows {reference_WK.std(1).mean():.2f} nats")  # fmt: skip


def measure(cfg: DictConfig) -> None:
    from hydra.utils import instantiate

    from dream.build import build_text

    OmegaConf.update(cfg, "scorer.cache_megabytes", 0)
    parts, scorers = build_text(cfg), {}
    for name in ("plain", *OPTIONS["dtypes"].split(",")):
        scoring = {**cfg.scorer.scoring, "dtype": "float32" if name == "plain" else name}
        scorers[name] = instantiate({**cfg.scorer, "scoring": scoring}, corpus=parts.corpus)
        scorers[name].to(OPTIONS["device"]).load(parts.store)
    plain = scorers.pop("plain")
    chosen = neighbourhood(parts.store, int(OPTIONS["windows"]), int(OPTIONS["passages"]))
    pairs = sequences_of(plain, parts.store, *chosen)
    found = compare(plain.model, scorers, pairs, int(OPTIONS["plain_pairs"]))
    show(plain.model, pairs, (len(chosen[0]), len(chosen[1])), found)


if __name__ == "__main__":
    for argument in list(sys.argv[1:]):
        key, _, value = argument.partition("=")
        if key in OPTIONS:
            OPTIONS[key] = value
            sys.argv.remove(argument)
    command("train", __doc__, KEYS)(measure)()
