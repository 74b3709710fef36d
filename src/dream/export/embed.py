"""Embeds texts with the model in this folder. It needs no torch: pip install numpy tokenizers onnxruntime

For a folder with model.xml, install openvino instead of onnxruntime.

    from embed import Encoder

    encoder = Encoder()
    queries = encoder.embed(["how do I read a file"], "query")
    passages = encoder.embed(["Opens the file and returns its lines."], "passage")
    print(queries @ passages.T)  # cosines
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

INPUTS = ("input_ids", "attention_mask")


class Encoder:
    """The model in `folder`; by default, in the folder of this file."""

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder or Path(__file__).parent)
        settings = json.loads((self.folder / "embed.json").read_text(encoding="utf-8"))
        self.sides = settings["sides"]
        self.tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        self.tokenizer.encode_special_tokens = settings["special_tokens_are_text"]
        self._model = self._openvino() if (self.folder / "model.xml").exists() else self._onnx()

    def _onnx(self):
        import onnxruntime

        session = onnxruntime.InferenceSession(str(self.folder / "model.onnx"), providers=["CPUExecutionProvider"])
        return lambda inputs: session.run(None, inputs)[0]

    def _openvino(self):
        import openvino

        precise = {"INFERENCE_PRECISION_HINT": "f32"}  # otherwise some processors compute in bfloat16
        model = openvino.Core().compile_model(str(self.folder / "model.xml"), "CPU", precise)
        return lambda inputs: model(inputs)[0]

    def embed(self, texts: Sequence[str], side: str, batch_size: int = 32) -> np.ndarray:
        """(texts, D) float32, of unit length. `side` is "query" or "passage"."""
        prefix, tokens = self.sides[side]["prefix"], self.sides[side]["tokens"]
        self.tokenizer.enable_truncation(tokens)
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch([prefix + text for text in texts])]
        batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        return np.concatenate([self._embed(batch) for batch in batches])

    def _embed(self, rows: list[list[int]]) -> np.ndarray:
        shape = (len(rows), max(1, *map(len, rows), 1))
        inputs = {name: np.zeros(shape, dtype=np.int64) for name in INPUTS}
        for number, row in enumerate(rows):
            inputs["input_ids"][number, : len(row)] = row
            inputs["attention_mask"][number, : len(row)] = 1
        return self._model(inputs)
