"""The frozen causal language model. It computes how likely a target is after a passage and a context.

Shapes: B windows, K candidates of a window, P pairs, M passages in a prompt, T tokens, R rows whose logits are kept,
V vocabulary, D width of the embeddings.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from dream.scorers.batching import PairBatching, tokens_per_forward
from dream.scorers.compilation import wants_compilation, weight_dtype
from dream.scorers.int8 import INT8, INT8_WEIGHTS, quantise
from dream.scorers.loglik_cache import LoglikCache
from dream.scorers.packing import Packing, can_pack
from dream.scorers.padding import Padding
from dream.scorers.pairs import find_or_score
from dream.scorers.prompt import Prompt, special_ids
from dream.scorers.weights import checksums, first_device
from dream.store.store import SCORER, Store
from dream.utils.atomic_io import fingerprint
from dream.utils.errors import require
from dream.utils.model_probe import in_float32, probe
from dream.utils.pretrained import Pretrained


@dataclass
class Scoring:
    """How pairs are scored: the fields of `scorer.scoring` in the YAML.

    Args:
        template: pieces of the prompt before the target: see `Prompt`.
        max_passage_tokens: longer passages are cut at their end.
        tokens_per_forward: maximum number of tokens of one forward, with padding; `auto`: depends on the device.
        dtype: type of the weights: `auto`, bfloat16, float16, float32, int8 or int8_weights.
        compile: whether to use torch.compile: `auto`, true or false.

    Raises:
        ConfigError: a value is out of its range.
    """

    template: list[str]
    max_passage_tokens: int
    tokens_per_forward: int | str
    dtype: str
    compile: bool | str

    def __post_init__(self) -> None:
        key, self.template = "scorer.scoring", list(self.template)
        require(self.max_passage_tokens > 0, f"{key}.max_passage_tokens", self.max_passage_tokens, "at least 1 token")
        budget = self.tokens_per_forward
        require(budget == "auto" or (isinstance(budget, int) and budget > 0), f"{key}.tokens_per_forward", budget,
                "choose auto or a number of tokens")  # fmt: skip
        weight_dtype(f"{key}.dtype", self.dtype, torch.device("cpu"))
        wants_compilation(f"{key}.compile", self.compile, torch.device("cpu"))


class CausalScorer:
    """Scores pairs of window and passage with a causal language model that is frozen and in eval mode.

    Pairs with the same passage share its computation: see `Packing`. A log-likelihood then differs by rounding if it is
    scored together with other pairs. The same pairs give bitwise the same values, so a resumed run repeats the
    uninterrupted one. Models that cannot share (convolutions, short sliding windows) score pairs one by one: see
    `Padding`.

    Subclasses define `load(store)`, which calls `open` or `use`.

    Args:
        tokenizer: tokenizer of the language model.
        scoring: how pairs are scored.
        cache_megabytes: size of the cache of log-likelihoods on disk; 0: no cache.

    Attributes:
        fingerprint: hash of everything that the log-likelihoods depend on, without the store.
        pairs_asked: number of pairs whose log-likelihood was requested.
        pairs_scored: number of pairs that the model scored; the others were in the cache.
        forwards: number of forwards of the model.

    Example:
        >>> scorer = HFScorer(None, "Qwen/Qwen2.5-0.5B", scoring, trust_remote_code=False, cache_megabytes=0)
        >>> scorer.load(store)
        >>> loglik_BK = scorer.loglik(store, torch.tensor([7]), torch.tensor([[50, 51, -1]]))
    """

    model: Any
    _cache: LoglikCache | None
    fingerprint: str
    is_placed = False  # whether accelerate has placed the layers, which then stay where they are

    def __init__(self, tokenizer: PreTrainedTokenizerBase, scoring: Scoring, cache_megabytes: int) -> None:
        require(cache_megabytes >= 0, "scorer.cache_megabytes", cache_megabytes, "a number of MB, or 0 for no cache")
        self.tokenizer = tokenizer
        self.scoring = scoring
        self.cache_megabytes, self._cache, self._scope = cache_megabytes, None, ""
        self.pairs_asked = self.pairs_scored = self.forwards = 0
        self.prompt = Prompt(scoring.template, tokenizer)
        self.device = torch.device("cpu")

    def open(self, name: str, store: Store, trust_remote_code: bool = False, device_map: str | None = None) -> None:
        """Load the weights from a folder or the hub, in the type in which this device scores.

        Args:
            name: a folder or a hub name; with `trust_remote_code`, its Python code is run.
            store: the store of windows and passages.
            device_map: where accelerate puts the layers; they then stay there. None: the device of the last `to`.

        Raises:
            ConfigError: the model cannot be loaded, or has too few positions.
        """
        source, self.is_placed = Pretrained("scorer.name", name, trust_remote_code), device_map is not None
        device = torch.device(first_device(device_map)) if device_map else self.device
        dtype = weight_dtype("scorer.scoring.dtype", self.scoring.dtype, device)
        options: dict[str, Any] = {"device_map": device_map} if device_map else {}
        model = source.model(AutoModelForCausalLM, dtype, **options)
        source.require_rows(self.tokenizer, len(model.get_input_embeddings().weight),
                            special_ids(self.scoring.template, self.tokenizer))  # fmt: skip
        self.use(model, store)

    def use(self, model: Any, store: Store) -> None:
        """Set the model for scoring. Raises ConfigError if it has too few positions for the longest sequence."""
        self.fit(probe(model)[0], store)
        self.model = model.eval().requires_grad_(False)
        with in_float32(self.model):
            self.packs = can_pack(self.model, self.longest)
        self.weights_fingerprint = fingerprint(checksums(self.model))
        self.to(self.device)

    def fit(self, positions: int | None, store: Store) -> None:
        """Check that a model with this number of positions reads the longest sequence. None: any number of tokens."""
        self.longest, self.longest_target = longest_sequence(self.prompt, self.scoring, store), store.longest_window[1]
        self.prompt.require_start(store.target)
        self.most_tokens = positions or np.iinfo(np.int64).max
        require(self.longest <= self.most_tokens, "scorer.scoring.max_passage_tokens", self.scoring.max_passage_tokens,
                f"with template, context and target a sequence has up to {self.longest} tokens, but the model reads "
                f"{positions}; lower it, or data.context_tokens or data.target_tokens")  # fmt: skip

    def to(self, device: torch.device | str) -> "CausalScorer":
        """Move to the device, and choose the type of the weights and the compilation for this device."""
        self.device = self.model.device if self.is_placed else torch.device(device)
        if not hasattr(self, "model"):
            return self
        dtype = weight_dtype("scorer.scoring.dtype", self.scoring.dtype, self.device)
        if not self.is_placed:
            self.model.to(self.device, dtype)
        kind = quantise(self.model, self.scoring.dtype, dtype)
        self.compiles = wants_compilation("scorer.scoring.compile", self.scoring.compile, self.device)
        padding = Padding(self.model, PairBatching(self.most_tokens, self.longest_target), self.compiles)
        self._forwards = Packing(self.model, self.compiles) if self.packs else padding
        reads = [self.prompt.before_passage.tolist(), self.prompt.before_context.tolist()]
        how = [kind, self.packs, self.device.type, self.compiles, torch.__version__]
        self.fingerprint = fingerprint([self.weights_fingerprint, *reads, self.scoring.max_passage_tokens, *how])
        return self

    def token_embeddings(self) -> Tensor:
        """(V, D) float32: a copy of the input embeddings, on the CPU."""
        return self.model.get_input_embeddings().weight.detach().to("cpu", torch.float32, copy=True)

    def loglik(
        self, store: Store, window_ids_B: Tensor, candidate_ids_BK: Tensor, on_all_ranks: bool = False
    ) -> Tensor:
        """loglik_BK float32: log p(target | passage, context) in nats, summed over the tokens of the target.

        The store says what the target is (`store.TARGETS`); if it is or has the context, nothing else is read first.

        Args:
            store: the store of windows and passages.
            window_ids_B: rows of the store's window table.
            candidate_ids_BK: passage ids. With -1, the null passage, the model reads the context without a passage.
            on_all_ranks: all ranks of the job call it together, with equally many pairs: see `find_or_score`.
        """
        windows_BK = window_ids_B.to(candidate_ids_BK)[:, None].expand_as(candidate_ids_BK)
        pairs_P2 = torch.stack([windows_BK.flatten(), candidate_ids_BK.flatten()], dim=1)
        self.pairs_asked += len(pairs_P2)
        open_cache = partial(self._open_cache, store) if self.cache_megabytes else None
        score = lambda windows_P, passages_P: self._score(store, windows_P, passages_P[:, None])  # noqa: E731
        loglik_P = find_or_score(open_cache, score, pairs_P2, on_all_ranks)
        return torch.from_numpy(loglik_P).view(candidate_ids_BK.shape).to(candidate_ids_BK.device)

    def token_loglik(self, store: Store, window_ids_B: Tensor, candidate_ids_BK: Tensor) -> tuple[Tensor, Tensor]:
        """(loglik_BKT: log-likelihood of each target token in nats, 0 after the last; mask_BT: true for tokens).

        It is not cached, because it has one value for each token instead of one for each pair.
        """
        windows_P = window_ids_B.cpu().numpy().repeat(candidate_ids_BK.shape[1])
        self.pairs_asked += len(windows_P)
        rows_PT = self._score(store, windows_P, candidate_ids_BK.reshape(-1, 1).cpu().numpy(), by_token=True)
        tokens_B = torch.from_numpy(store.scored_counts(window_ids_B.cpu().numpy()))
        mask_BT = torch.arange(rows_PT.shape[1]) < tokens_B[:, None]
        loglik_BKT = torch.from_numpy(rows_PT).view(*candidate_ids_BK.shape, rows_PT.shape[1])
        return loglik_BKT.to(candidate_ids_BK.device), mask_BT.to(candidate_ids_BK.device)

    def loglik_without(self, store: Store, window_ids_B: Tensor, candidate_ids_BK: Tensor) -> Tensor:
        """loglik_BK: log p(target | all candidates except k in one prompt, context), in nats. Not cached.

        The model must be able to read K - 1 passages at once: see `require_room`.
        """
        windows, k = candidate_ids_BK.shape
        others = torch.tensor([[other for other in range(k) if other != left] for left in range(k)])
        sets_PM = candidate_ids_BK.cpu()[:, others].reshape(windows * k, k - 1).numpy()
        self.pairs_asked += len(sets_PM)
        loglik_P = self._score(store, window_ids_B.cpu().numpy().repeat(k), sets_PM)
        return torch.from_numpy(loglik_P).view(windows, k).to(candidate_ids_BK.device)

    def require_room(self, store: Store, passages: int, key: str, value: int) -> None:
        """Check that the model has enough positions for a prompt with this number of passages.

        Raises:
            ConfigError: the model has too few positions. The message contains `key` and `value`.
        """
        longest = longest_sequence(self.prompt, self.scoring, store, passages)
        require(longest <= self.most_tokens, key, value, f"{passages} passages are read at once, up to {longest} "
                f"tokens, but the model reads {self.most_tokens}; take fewer, or another scorer")  # fmt: skip

    def require_gradient(self) -> None:
        """Check that the model can be differentiated. Raises ConfigError if it has 8-bit layers."""
        require(self.scoring.dtype not in (INT8, INT8_WEIGHTS), "scorer.scoring.dtype", self.scoring.dtype,
                "8-bit layers have no gradient, which this objective needs; choose auto")  # fmt: skip

    def _open_cache(self, store: Store) -> LoglikCache:
        scope = f"{self.fingerprint}-{store.scoring_hash}"
        if self._cache is None or scope != self._scope:
            if self._cache is not None:
                self._cache.close()
            self._cache, self._scope = LoglikCache(store.cache_folder("loglik"), self.cache_megabytes), scope
            self._cache.open(scope)
        return self._cache

    @contextmanager
    def no_autocast(self) -> Iterator[None]:
        """Switch autocast off: cached log-likelihoods must not depend on the precision of the encoder's training."""
        with torch.autocast(self.device.type, enabled=False):
            yield

    def _score(
        self, store: Store, windows_P: np.ndarray, passages_PM: np.ndarray, by_token: bool = False
    ) -> np.ndarray:
        """loglik_P of the pairs of windows and prompts with M passages; or loglik_PT, see `score_sequences`."""
        sequences, targets, shared = self._sequences(store, windows_P, passages_PM)
        return self.score_sequences(sequences, targets, by_token, shared)

    @torch.no_grad()
    def score_sequences(self, sequences: list[np.ndarray], targets: list[int], by_token: bool = False,
                        shared: list[int] | None = None) -> np.ndarray:  # fmt: skip
        """Score sequences with the model. Returns loglik_P float32, or loglik_PT of target tokens, 0 after the last.

        Args:
            sequences: token ids of each pair; its target is at the end.
            targets: number of target tokens of each pair.
            by_token: whether to return one value for each target token.
            shared: number of first tokens of each pair that other pairs may have, too. They are computed once.
        """
        tokens = max(targets, default=0)
        loglik_P = np.zeros((len(sequences), tokens) if by_token else len(sequences), dtype=np.float32)
        if not sequences:
            return loglik_P
        shared = shared or [0] * len(sequences)
        with self.no_autocast():
            parts = self._forwards.scores(sequences, targets, shared, by_token, self.token_budget)
            order, scores = zip(*parts, strict=True)
        self.forwards += len(scores)
        self.pairs_scored += len(sequences)
        loglik_P[np.concatenate(order)] = torch.cat(scores).cpu().numpy()
        return loglik_P

    def passage(self, store: Store, passage_id: int) -> np.ndarray:
        """Tokens of a passage, cut to `max_passage_tokens`. Empty for the null passage, -1."""
        if passage_id < 0:
            return np.empty(0, dtype=np.int64)
        return store.read_tokens(passage_id, SCORER)[: self.scoring.max_passage_tokens]

    def _sequences(self, store: Store, windows_P: np.ndarray, passages_PM: np.ndarray
                   ) -> tuple[list[np.ndarray], list[int], list[int]]:  # fmt: skip
        """(token ids, number of target tokens, number of tokens before the context) of each pair"""
        sequences, targets, shared = [], [], []
        for window, ids_M in zip(windows_P.tolist(), passages_PM.tolist(), strict=True):
            given, scored = store.scored_tokens(window)
            passages = [self.passage(store, passage_id) for passage_id in ids_M]
            sequences.append(self.prompt.join_passages(passages, given, scored))
            targets.append(len(scored))
            shared.append(len(sequences[-1]) - len(given) - len(scored))
        return sequences, targets, shared

    @property
    def token_budget(self) -> int:
        """Maximum number of tokens of one forward, with padding."""
        budget = self.scoring.tokens_per_forward
        return tokens_per_forward(self.device) if budget == "auto" else int(budget)


def longest_sequence(prompt: Prompt, scoring: Scoring, store: Store, passages: int = 1) -> int:
    """Maximum number of tokens of a sequence with this number of passages and a window of the store."""
    return prompt.overhead(passages) + passages * scoring.max_passage_tokens + sum(store.longest_window)
