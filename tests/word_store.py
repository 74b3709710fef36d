"""Stores whose tokens are their words, so that passages and windows can be laid out by hand."""

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dream.corpora.jsonl import JsonlCorpus
from dream.store.build import open_or_build
from dream.store.store import Store


def word_store(
    folder: Path, texts: list[str], passage: int = 100, context: int = 1, target: int = 1, kind: str = "span",
    asked: str = "continuation", language: str | None = None,
) -> Store:  # fmt: skip
    """A store of these documents. Lengths are in words; a window is `context` words and then `target` words.

    `kind` is the kind of the contexts, `asked` what the language model is asked.
    """
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(" ".join(["?", *texts]).split()))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?", pad_token="?")
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps({"_id": f"d{n}", "text": text}) + "\n" for n, text in enumerate(texts)))
    corpus = JsonlCorpus("hand", str(path), "_id", "title", ["text"], False, None, None, "error", 32, language)
    return open_or_build(
        folder / "stores",
        corpus,
        words,
        words,
        passage_tokens=passage,
        context_tokens=context,
        min_context_tokens=context,
        target_tokens=target,
        context=kind,
        target=asked,
    )
