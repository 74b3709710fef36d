"""Asks an OpenAI-compatible completions endpoint for the log-probabilities of the tokens of prompts."""

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from dream.utils.errors import ConfigError, require, require_installed
from dream.utils.logging import get_logger

log = get_logger(__name__)

KEY = "scorer.url"
PASSING = {408, 409, 425, 429, 500, 502, 503, 504}  # status codes of a server that is busy or starting
LONGEST_WAIT = 60.0  # seconds between two tries
# How servers are asked for the prompt's log-probabilities: first OpenAI's way (vLLM, SGLang, llama-cpp-python), then
# vLLM's own. One token is generated, because not all servers can generate none.
WAYS: tuple[dict[str, Any], ...] = ({"echo": True, "logprobs": 1}, {"prompt_logprobs": 1})
START = "start it, or set the address of a completions endpoint, e.g. http://localhost:8000/v1"
RESTART = "start it again; ckpt=auto resumes the run from its last checkpoint"
NO_LOGPROBS = ("gives no log-probabilities of the prompt; use a server that does, e.g. vLLM or SGLang, or score with "
               "scorer=hf or scorer=gguf")  # fmt: skip


class Completions:
    """One model of a server. Prompts are token ids, so the server tokenises nothing.

    A request that fails in passing is repeated after 1, 2, 4 … seconds, or after the time that the server names.

    Args:
        url: address of the API, which ends with `/v1` on most servers.
        model: name of the model there; None if the server has only one.
        key_variable: environment variable with the API key. Without it, no key is sent.
        concurrency: number of requests at a time.
        retries: tries after the first one.
        seconds: longest wait for an answer.

    Attributes:
        text_of_probe: the text of the last prompt's tokens, as the server writes them; None if it does not.

    Raises:
        ConfigError: a value is out of its range. Methods raise it if the server cannot be used.
    """

    def __init__(
        self, url: str, model: str | None, key_variable: str, concurrency: int, retries: int, seconds: float
    ) -> None:
        require_installed(["httpx2"], "server", "scorer", "server")
        require(str(url).startswith(("http://", "https://")), KEY, url, "begins with http:// or https://")
        require(concurrency > 0, "scorer.concurrency", concurrency, "at least 1 request")
        require(retries >= 0, "scorer.retries", retries, "at least 0")
        require(seconds > 0, "scorer.seconds", seconds, "above 0")
        self.url, self.model, self.concurrency, self.retries = str(url).rstrip("/"), model, concurrency, retries
        self._key, self._seconds, self._way = os.environ.get(key_variable), seconds, WAYS[0]
        self._client: Any = None
        self.text_of_probe: str | None = None
        self._stopped = threading.Event()

    def open(self, probe: list[int]) -> dict[str, Any]:
        """Find the model and the way to ask. Returns the server's entry of the model. `probe`: a short prompt."""
        import httpx2

        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx2.Limits(max_connections=self.concurrency)
        self._client = httpx2.Client(headers=headers, timeout=self._seconds, limits=limits)
        listed = self._ask("GET", "/models", None, 0).get("data") or []
        names = [entry.get("id") for entry in listed]
        if self.model is None:
            require(len(names) == 1, "scorer.model", None, f"the server at {self.url} has the models {names}: name one")
            self.model = names[0]
        require(self.model in names, "scorer.model", self.model, f"the server at {self.url} has {names}")
        for self._way in WAYS:
            try:
                if self._prompt_logprobs([probe], 0) is not None:
                    return next(entry for entry in listed if entry.get("id") == self.model)
            except ConfigError as error:
                if self._way is WAYS[-1]:
                    raise ConfigError(KEY, self.url, f"{NO_LOGPROBS} (it says: {error})") from error
        raise ConfigError(KEY, self.url, NO_LOGPROBS)

    def logprobs(self, batches: Sequence[list[list[int]]]) -> list[list[np.ndarray]]:
        """The log-probabilities of the tokens of each prompt of each batch, in nats; NaN for its first token."""
        self._stopped.clear()
        with ThreadPoolExecutor(self.concurrency) as pool:
            answers = [pool.submit(self._complete, batch) for batch in batches]
            try:
                return [answer.result() for answer in answers]
            except BaseException:  # also a signal: nothing is sent again; requests under way end within scorer.seconds
                self._stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _complete(self, prompts: list[list[int]]) -> list[np.ndarray]:
        found = self._prompt_logprobs(prompts, self.retries)
        if found is None:
            raise ConfigError(KEY, self.url, f"has answered with other tokens than those of the prompt; {RESTART}")
        return found

    def _prompt_logprobs(self, prompts: list[list[int]], retries: int) -> list[np.ndarray] | None:
        """As `logprobs`; None if the answer lacks a token of a prompt."""
        content = {"model": self.model, "prompt": prompts, "max_tokens": 1, "temperature": 0, **self._way}
        choices = self._ask("POST", "/completions", content, retries).get("choices") or []
        if len(choices) != len(prompts):
            return None
        ordered = sorted(choices, key=lambda choice: choice.get("index", 0))
        self.text_of_probe = _text(ordered[-1], len(prompts[-1]))
        found = [_of_choice(choice, prompt) for choice, prompt in zip(ordered, prompts, strict=True)]
        return [values for values in found if values is not None] if all(v is not None for v in found) else None

    def _ask(self, method: str, path: str, content: dict[str, Any] | None, retries: int) -> dict[str, Any]:
        """The answer of the server. Raises ConfigError if it refuses the request, or is not there after all tries."""
        import httpx2

        cause = ""
        for attempt in range(retries + 1):
            wait = 2.0**attempt
            try:
                response = self._client.request(method, self.url + path, json=content)
                if response.status_code < 400:
                    return response.json()
                cause = f"answers {response.status_code} {' '.join(response.text.split())[:200]}"
                if response.status_code not in PASSING:
                    break
                wait = _seconds(response.headers.get("retry-after")) or wait
            except httpx2.TransportError as error:
                cause = f"cannot be reached ({error or type(error).__name__})"
            except ValueError:
                cause = "answers with something else than JSON"
            if attempt == 0 and retries:
                log.warning(f"{KEY}={self.url}: {cause}; trying again up to {retries} times")
            if attempt == retries or self._stopped.wait(min(wait, LONGEST_WAIT)):
                break
        raise ConfigError(KEY, self.url, f"the server {cause}; {RESTART if retries else START}")


def _of_choice(choice: dict[str, Any], prompt: list[int]) -> np.ndarray | None:
    """Log-probabilities of the tokens of a prompt, NaN for the first; None if one of the others is missing."""
    if choice.get("prompt_logprobs") is not None:  # of each place, the most likely tokens and the prompt's, by id
        places = choice["prompt_logprobs"]
        entries = [(place or {}).get(str(token), {}) for place, token in zip(places, prompt, strict=False)]
        values = [entry.get("logprob") for entry in entries]
    else:
        values = ((choice.get("logprobs") or {}).get("token_logprobs") or [])[: len(prompt)]
    if len(values) != len(prompt) or None in values[1:]:
        return None
    return np.array([np.nan, *values[1:]], dtype=np.float64)


def _text(choice: dict[str, Any], tokens: int) -> str | None:
    """The text of the prompt's first tokens, if the answer has it."""
    found = ((choice.get("logprobs") or {}).get("tokens") or [])[:tokens]
    texts = [token for token in found if isinstance(token, str) and not token.startswith("token_id:")]
    return "".join(texts) if len(texts) == tokens else None


def _seconds(header: str | None) -> float | None:
    """The time of a Retry-After header, if it is a number."""
    try:
        return float(header) if header else None
    except ValueError:
        return None
