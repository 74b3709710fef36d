"""A small server with the completions endpoint of vLLM and SGLang, for a real model of transformers on loopback."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

uvicorn = pytest.importorskip("uvicorn")
applications = pytest.importorskip("starlette.applications")
responses = pytest.importorskip("starlette.responses")
routing = pytest.importorskip("starlette.routing")

NAME = "tiny"


class CompletionsServer:
    """Serves one model.

    Args:
        folder: the model.
        way: how it gives log-probabilities of the prompt: `echo`, `prompt_logprobs`, or `none`.

    Attributes:
        url: its address.
        failures: status codes that it answers to the next requests, instead of completions.
        pause: seconds before each answer.
        requests: the JSON of all requests of completions.
        most: largest number of requests at a time.
    """

    def __init__(self, folder: Path, way: str = "echo") -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.way, self.failures, self.requests = way, [], []
        self.now, self.most, self.pause = 0, 0, 0.0
        self.lock = threading.Lock()
        self.keys: list[str | None] = []
        routes = [routing.Route("/v1/models", self._models), routing.Route("/v1/completions", self._answer,
                                                                          methods=["POST"])]  # fmt: skip
        self.app = applications.Starlette(routes=routes)

    @contextmanager
    def running(self) -> Iterator["CompletionsServer"]:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        server = uvicorn.Server(uvicorn.Config(self.app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.should_exit = True
            thread.join(10)
            listener.close()

    def _models(self, request) -> Any:
        entry = {"id": NAME, "object": "model", "max_model_len": self.model.config.max_position_embeddings}
        return responses.JSONResponse({"object": "list", "data": [entry]})

    async def _answer(self, request) -> Any:
        from starlette.concurrency import run_in_threadpool

        asked = await request.json()
        self.keys.append(request.headers.get("authorization"))
        return await run_in_threadpool(self._complete, asked)

    def _complete(self, asked: dict[str, Any]) -> Any:
        with self.lock:
            self.requests.append(asked)
            self.now += 1
            self.most = max(self.most, self.now)
            failure = self.failures.pop(0) if self.failures else None
        time.sleep(self.pause)
        try:
            if failure is not None:
                return responses.JSONResponse({"error": {"message": "busy"}}, failure, {"Retry-After": "0.01"})
            choices = [self._choice(at, ids, asked) for at, ids in enumerate(asked["prompt"])]
            return responses.JSONResponse({"object": "text_completion", "model": NAME, "choices": choices[::-1]})
        finally:
            with self.lock:
                self.now -= 1

    @torch.no_grad()
    def _choice(self, at: int, ids: list[int], asked: dict[str, Any]) -> dict[str, Any]:
        logits_TV = self.model(torch.tensor([ids])).logits[0].log_softmax(1)
        new = int(logits_TV[-1].argmax())
        values = [None, *(logits_TV[place, token].item() for place, token in enumerate(ids[1:])), 0.0]
        choice: dict[str, Any] = {"index": at, "text": "", "logprobs": None, "finish_reason": "length"}
        if self.way == "echo" and asked.get("echo"):
            tokens = [self.tokenizer.decode([token]) for token in [*ids, new]]
            choice["logprobs"] = {"tokens": tokens, "token_logprobs": values}
        elif asked.get("echo"):  # as llama.cpp's server: only the new token
            choice["logprobs"] = {"tokens": [self.tokenizer.decode([new])], "token_logprobs": [0.0]}
        elif self.way == "prompt_logprobs" and "prompt_logprobs" in asked:
            top = logits_TV.argmax(1).tolist()
            choice["prompt_logprobs"] = [None] + [
                {str(top[place]): {"logprob": 0.0, "rank": 1}, str(token): {"logprob": values[place + 1], "rank": 2}}
                for place, token in enumerate(ids[1:])
            ]
        return choice
