"""Measures peak memory and time of one step of contexts and continuations, with and without cached gradients.

    .venv/bin/python benchmarks/cached_gradients.py --windows 4096 --chunk 64 --width 384 --layers 6

The encoder is a random BERT. The loss is that of info_nce over all windows, so its matrix of cosines is part of the
memory. It prints the peak of the resident memory minus the memory before the step.
"""

import argparse
import tempfile
import time
from pathlib import Path

import dream.utils.runtime  # noqa: F401  before torch and numpy, as in every command

# isort: split
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from dream.objectives.info_nce import info_nce
from dream.store.ragged import pad_tokens
from dream.utils.logging import get_logger
from dream.utils.runtime import CONFIG_DIR
from store_memory import Peaks, memory_mb

log = get_logger(__name__)

SPECIAL, ENTRIES = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"], 1000


def write_model(folder: Path, width: int, layers: int) -> None:
    words = [*SPECIAL, *(f"w{number}" for number in range(ENTRIES - len(SPECIAL)))]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", 1), ("[SEP]", 2)]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = dict(zip(("pad_token", "cls_token", "sep_token", "unk_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    config = BertConfig(vocab_size=ENTRIES, hidden_size=width, num_hidden_layers=layers, intermediate_size=4 * width,
                        num_attention_heads=max(1, width // 32), max_position_embeddings=512)  # fmt: skip
    BertModel(config).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=16, help="of a text")
    parser.add_argument("--chunk", type=int, default=None, help="encoder.chunk; without it, all texts at once")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), options.width, options.layers)
        encoder = instantiate(OmegaConf.load(CONFIG_DIR / "encoder" / "hf.yaml"), name=folder, chunk=options.chunk)
    texts = pad_tokens(torch.randint(len(SPECIAL), ENTRIES, (2 * options.windows, options.tokens)).tolist(), 0)
    others = torch.eye(options.windows, dtype=torch.bool)
    began = time.perf_counter()
    before, peaks = memory_mb()[0], Peaks(every=0.01)
    queries, passages = (encoder(part, "query") for part in (texts.head(options.windows), _tail(texts)))
    loss = info_nce(queries @ passages.T, others, 0.05)
    loss.backward()
    log.info(f"{options.windows} windows, chunk {options.chunk}: peak {peaks.stop()[0] - before:,.0f} MB, "
             f"{time.perf_counter() - began:.1f} s, loss {loss.item():.6f}")  # fmt: skip


def _tail(texts):
    half = len(texts) // 2
    return type(texts)(texts.ids_BT[half:], texts.mask_BT[half:])


if __name__ == "__main__":
    main()
