"""A scorer whose language model runs on a server: vLLM, SGLang, or another one with the same completions endpoint."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dream.corpora.base import Corpus
from dream.scorers.base import CausalScorer, Scoring
from dream.scorers.completions import Completions
from dream.store.store import Store
from dream.utils.atomic_io import fingerprint
from dream.utils.errors import ConfigError, require
from dream.utils.pretrained import Pretrained

PROBE = "The river runs over the stones."


class ServerScorer(CausalScorer):
    """Log-likelihoods of a server's language model. They differ from those of `hf` on the same weights by rounding.

    The server computes the same prompt in different batches, so its values may differ in the last digits from one
    request to the next. Pairs in the cache keep their first value. A server gives neither gradients nor embeddings of
    tokens.

    Args:
        corpus: not used. All scorers have this argument.
        url: address of the API, e.g. http://localhost:8000/v1.
        model: name of the model there; None: the only one.
        name: hub name or folder of the model, of which only the tokenizer is read.
        scoring: template, max_passage_tokens, and tokens_per_forward, here of one request.
        concurrency: requests at a time.
        retries: tries after a failure in passing, after 1, 2, 4 … seconds.
        seconds: longest wait for an answer.
        token_limit: tokens that this process may send to the server; None for no limit.
        key_variable: environment variable with the API key.
        cache_megabytes: size of the cache of log-likelihoods; 0 for none.

    Attributes:
        tokens_sent: tokens of the prompts that were sent for scoring.

    Raises:
        ConfigError: a value is out of its range, or the server cannot be used.
    """

    def __init__(
        self,
        corpus: Corpus | None,
        url: str,
        model: str | None,
        name: str,
        scoring: Mapping[str, Any],
        concurrency: int,
        retries: int,
        seconds: float,
        token_limit: int | None,
        key_variable: str,
        cache_megabytes: int,
    ) -> None:
        self.server = Completions(url, model, key_variable, concurrency, retries, seconds)
        limited = token_limit is None or token_limit > 0
        require(limited, "scorer.token_limit", token_limit, "null, or a number of tokens")
        own = Pretrained("scorer.name", name, False).tokenizer()
        super().__init__(own, Scoring(**{**scoring, "dtype": "auto", "compile": False}), cache_megabytes)
        self.token_limit, self.tokens_sent = token_limit, 0
        self._connect()

    def load(self, store: Store) -> None:
        """Check that the model has enough positions, if the server says how many it has."""
        self.fit(self.positions, store)

    def _connect(self) -> None:
        """Connect to the server before the corpus is prepared, and check that it reads this tokenizer's ids."""
        probe = self.tokenizer(PROBE, add_special_tokens=False)["input_ids"]
        self.positions = self.server.open(probe).get("max_model_len")  # vLLM and SGLang name it
        heard, own = self.server.text_of_probe, "".join(self.tokenizer.batch_decode([[token] for token in probe]))
        require(heard is None or _letters(heard) == _letters(own), "scorer.name", self.tokenizer.name_or_path,
                f"the model {self.server.model} reads the ids of {own!r} as {heard!r}; name the model of this server"
                )  # fmt: skip
        nats = round(float(np.nansum(self.server.logprobs([[probe]])[0][0])), 1)
        reads = [self.prompt.before_passage.tolist(), self.prompt.before_context.tolist()]
        self.weights_fingerprint = fingerprint(["server", self.server.model, probe, nats])
        self.fingerprint = fingerprint([self.weights_fingerprint, *reads, self.scoring.max_passage_tokens])

    def to(self, device: torch.device | str) -> "ServerScorer":
        """The results are on the device of the candidates; the model stays where it is."""
        self.device = torch.device(device)
        return self

    def token_embeddings(self) -> Tensor:
        raise ConfigError("encoder", "static", "starts from the scorer's embeddings of tokens, which a server does not "
                          "give; choose encoder=hf")  # fmt: skip

    def require_gradient(self) -> None:
        raise ConfigError("scorer", "server", "a server gives no gradient, which this objective needs; choose "
                          "objective=kl_posterior, marginal or leave_one_out, or scorer=hf")  # fmt: skip

    def score_sequences(self, sequences: list[np.ndarray], targets: list[int], by_token: bool = False,
                        shared: list[int] | None = None) -> np.ndarray:  # fmt: skip
        """See `CausalScorer.score_sequences`. `shared` is not used: servers find common beginnings themselves."""
        tokens = max(targets, default=0)
        loglik_P = np.zeros((len(sequences), tokens) if by_token else len(sequences), dtype=np.float32)
        batches = self._batches(sequences)
        answers = [values for batch in self.server.logprobs(batches) for values in batch]
        self.forwards += len(batches)
        self.pairs_scored += len(sequences)
        for row, (values_T, count) in enumerate(zip(answers, targets, strict=True)):
            target_T = values_T[len(values_T) - count :]
            if by_token:
                loglik_P[row, :count] = target_T
            else:
                loglik_P[row] = target_T.sum()
        return loglik_P

    def _batches(self, sequences: list[np.ndarray]) -> list[list[list[int]]]:
        """The prompts of each request. Raises ConfigError if they would exceed the limit of tokens."""
        batches: list[list[list[int]]] = []
        room = 0
        for sequence in sequences:
            if not batches or len(sequence) > room:
                batches.append([])
                room = self.token_budget
            batches[-1].append(sequence.tolist())
            room -= len(sequence)
        sent = self.tokens_sent + sum(map(len, sequences))
        require(self.token_limit is None or sent <= self.token_limit, "scorer.token_limit", self.token_limit,
                f"{self.tokens_sent:,} tokens have been sent, and the next step needs {sent - self.tokens_sent:,}; "
                "raise it; ckpt=auto resumes the run from its last checkpoint")  # fmt: skip
        self.tokens_sent = sent
        return batches


def _letters(text: str) -> str:
    """The letters of an English text: servers write the blanks in tokens in different ways."""
    return "".join(letter for letter in text if letter.isascii() and letter.isalpha())
