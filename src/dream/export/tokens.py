"""The tokenizer of an exported encoder, for the library `tokenizers` alone, and the table of the static encoder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from dream.encoders.base import Side
from dream.encoders.hf import HFEncoder
from dream.encoders.static import StaticEncoder

SIDES: tuple[Side, Side] = ("query", "passage")


@dataclass(frozen=True)
class TextReader:
    """How an exported encoder turns texts into token ids.

    Attributes:
        tokenizer: adds the special tokens.
        prefixes: text before each text of a side.
        tokens: maximum number of ids of a side, with prefix and special tokens.
        reads_special: whether the tokenizer recognises special tokens in a text, because a prefix contains one.
    """

    tokenizer: Tokenizer
    prefixes: Mapping[Any, str]
    tokens: Mapping[Any, int]
    reads_special: bool = False

    def as_json(self) -> dict[str, Any]:
        """Everything except the tokenizer."""
        sides = {side: {"prefix": self.prefixes[side], "tokens": self.tokens[side]} for side in SIDES}
        return {"sides": sides, "special_tokens_are_text": not self.reads_special}


def text_reader(encoder: StaticEncoder | HFEncoder) -> TextReader:
    """The reader whose ids are those of the encoder."""
    if isinstance(encoder, StaticEncoder):
        return TextReader(plain_tokenizer(encoder), dict.fromkeys(SIDES, ""), dict.fromkeys(SIDES, encoder.max_tokens))
    framing = encoder.framing
    lengths = {side: framing.length(side, encoder.max_tokens) for side in SIDES}
    return TextReader(framing.text_tokenizer, framing.prefixes, lengths, framing.has_special_prefix)


def plain_tokenizer(encoder: StaticEncoder) -> Tokenizer:
    """The static encoder's tokenizer, which cuts texts and adds nothing. A special token in a text is plain text.

    Special tokens are removed from the list of added tokens: other programs do not read `encode_special_tokens`.
    """
    settings = json.loads(encoder.tokenizer.backend_tokenizer.to_str())
    settings["added_tokens"] = [token for token in settings["added_tokens"] if not token["special"]]
    settings["post_processor"] = settings["padding"] = settings["truncation"] = None
    tokenizer = Tokenizer.from_str(json.dumps(settings))
    tokenizer.enable_truncation(encoder.max_tokens)
    return tokenizer


def weighted_table(encoder: StaticEncoder, tokenizer: Tokenizer) -> Tensor:
    """(rows, D) float32: weight · vector of each id of `tokenizer`, whose ids may differ from the encoder's.

    Tokens without a vector, which no text contains, have zeros.
    """
    weights = encoder.weights()
    own_VD = weights["weight_V"][:, None] * weights["table_VD"]
    own_ids = encoder.tokenizer.backend_tokenizer
    vocabulary = tokenizer.get_vocab()
    table_VD = torch.zeros(1 + max(vocabulary.values()), own_VD.shape[1])
    for token, row in vocabulary.items():
        own = own_ids.token_to_id(token)
        if own is not None and own < len(own_VD):
            table_VD[row] = own_VD[own]
    return table_VD
