"""Adds to a text the prefix of its side (query or passage) and the tokenizer's special tokens.

Many tokenizers treat the blank between prefix and text as part of the text's first token: "query: river" gives the
tokens "query", ":" and " river", but "query: " and "river" give other tokens if each is tokenised separately. Queries
and other raw texts are therefore tokenised together with their prefix. Passages and windows come from the store as
token ids without prefix. The store cuts them with `Framing.store_tokenizer`, which tokenises a document as if it
followed the passage prefix. So prefix ids + passage ids are the ids of the joined text.

This is not exact for every piece of a document, because a piece keeps the ids that it has in its document. A piece
after a line break and a window after a query prefix may lack the blank. Their first token is then replaced by the token
with the blank, if the vocabulary has it. If the first word has several tokens, these may differ from the tokens of the
joined text, but they decode to the same text. A prefix that ends with a punctuation mark, such as "query:", may form
one token with a punctuation mark at the beginning of the text; pieces of the store keep two tokens.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer, normalizers

from dream.batch import TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NO_TEXT = "\0"  # a character that texts do not have
BLANKS = ("\u0120", "\u2581")  # how byte-level and SentencePiece vocabularies write a blank
# Texts that begin with a letter, a capital, a digit or a punctuation mark. Some contain white space or line breaks.
PROBES = ("river stone", "Rivers, stones.", "7 rivers", "émile  is\nhere", "(river)", "the", "a\tb")


class Framing:
    """Token ids of framed texts, for both sides. If a text contains a special token, it is read as plain text.

    Args:
        tokenizer: the encoder's tokenizer.
        prefixes: the prefix of each side. If a prefix contains special tokens, they are special tokens.

    Attributes:
        store_tokenizer: tokenizer for the store, see above.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", prefixes: dict[str, str]) -> None:
        self.tokenizer, self.prefixes = tokenizer, prefixes
        self.pad_id = tokenizer.pad_token_id or 0
        self._plain = own = _bare(tokenizer.backend_tokenizer, special=False)
        spelled = [token for token in tokenizer.all_special_tokens if token and token != tokenizer.unk_token]
        self._plain_is_own = not any(own.token_to_id(token) in self._ids(own, token) for token in spelled)
        if not self._plain_is_own:
            self._plain = _without_pieces(own, spelled)
        self._special = _bare(tokenizer.backend_tokenizer, special=True)
        self._spelled = [token for token in tokenizer.all_special_tokens if token]
        probe = self._special.encode(PROBES[0])
        inner = [at for at, added in enumerate(probe.special_tokens_mask) if not added]
        first, last = (inner[0], inner[-1] + 1) if inner else (len(probe.ids), len(probe.ids))
        self.opening, self.closing = probe.ids[:first], probe.ids[last:]
        self._blanked_V = torch.from_numpy(_blanked(self._plain))
        self._lacks_blank: dict[str, bool] = {}  # by side: whether the text's first token contains the prefix's blank
        variant, passage_ids = self._fit("passage", _variants(self._plain), replace=False)
        self.store_tokenizer = tokenizer if variant is own else _with_backend(tokenizer, variant)
        self._side_ids = {"passage": passage_ids, "query": self._fit("query", [variant], replace=True)[1]}

    def before(self, side: str) -> list[int]:
        """Ids that come before the passages and windows of the store."""
        return self.opening + self._side_ids[side]

    @property
    def tokens(self) -> int:
        """The largest number of tokens that framing adds to a text."""
        return max(len(self.before(side)) for side in self.prefixes) + len(self.closing)

    def length(self, side: str, max_tokens: int) -> int:
        """Number of tokens of the longest framed text of a side, if texts are cut to `max_tokens`."""
        return len(self.before(side)) + max_tokens + len(self.closing)

    @property
    def has_special_prefix(self) -> bool:
        """Whether a prefix contains a special token, which is then recognised in prefixes and not in texts."""
        return any(token in prefix for prefix in self.prefixes.values() for token in self._spelled)

    @property
    def keeps_special_texts(self) -> bool:
        """Whether transformers reads the spelling of a special token in a text as plain text, as this class does, if
        the tokenizer's `split_special_tokens` is set."""
        return self._plain_is_own and not self.has_special_prefix

    @property
    def text_tokenizer(self) -> Tokenizer:
        """A tokenizer for prefix + text. It adds the special tokens, and cuts nothing."""
        tokenizer = self._special if self.has_special_prefix else self._plain
        return Tokenizer.from_str(tokenizer.to_str())

    def frame_texts(self, texts: list[str], side: str, max_tokens: int) -> list[list[int]]:
        """Ids of prefix + text between special tokens. Each text is cut to `max_tokens`."""
        longest = len(self._side_ids[side]) + max_tokens
        return [self.opening + ids[:longest] + self.closing for ids in self._join(self.prefixes[side], texts)]

    def frame_ids(self, batch: TokenBatch, side: str) -> TokenBatch:
        """Add prefix and special tokens to a batch of store ids. Padding stays at the end."""
        before, after = self.before(side), self.closing
        lengths_B = batch.mask_BT.sum(1)
        rows, tokens = batch.ids_BT.shape
        shape = (rows, tokens + len(before) + len(after))
        ids_BT = batch.ids_BT.new_full(shape, self.pad_id)
        ids_BT[:, len(before) : len(before) + tokens] = batch.ids_BT.where(batch.mask_BT, ids_BT[:, :1])
        if self._lacks_blank[side]:
            self._blanked_V = self._blanked_V.to(batch.ids_BT.device)
            first_B = self._blanked_V[batch.ids_BT[:, 0].clamp(max=len(self._blanked_V) - 1)]
            ids_BT[:, len(before)] = first_B.where(batch.mask_BT[:, 0], ids_BT[:, len(before)])
        ids_BT[:, : len(before)] = torch.tensor(before, dtype=ids_BT.dtype, device=ids_BT.device)
        for offset, token in enumerate(after):
            ids_BT[torch.arange(rows, device=ids_BT.device), lengths_B + len(before) + offset] = token
        positions_T = torch.arange(shape[1], device=ids_BT.device)
        return TokenBatch(ids_BT, positions_T < (lengths_B + len(before) + len(after))[:, None])

    def _join(self, prefix: str, texts: Sequence[str]) -> list[list[int]]:
        """Ids of prefix + text for each text. Special tokens are recognised only in the prefix."""
        end = max((prefix.rfind(token) + len(token) for token in self._spelled if token in prefix), default=0)
        if not end:
            return _ids_of(self._plain, [prefix + text for text in texts])
        rows = _ids_of(self._special, [prefix + text for text in texts])
        head = self._ids(self._special, prefix[:end])
        for row, text in enumerate(texts):
            if any(token in text for token in self._spelled):
                rows[row] = head + self._ids(self._plain, prefix[end:] + text)
        return rows

    def _fit(self, side: str, variants: Iterable[Tokenizer], replace: bool) -> tuple[Tokenizer, list[int]]:
        """The tokenizer and the prefix ids whose results match the ids of the joined text for most probes.

        With `replace`, the first token of a bare text gets the blank at the end of the prefix, as in `frame_ids`.
        """
        prefix = self.prefixes[side]
        whole, shorter = self._ids(self._special, prefix), self._ids(self._special, prefix.rstrip(" "))
        joined = self._join(prefix, PROBES)
        best: tuple[int, Tokenizer, list[int]] = (-1, self._plain, whole)
        for variant in variants:  # each costs a copy of the vocabulary
            rows = _ids_of(variant, PROBES)
            blanked = [[int(self._blanked_V[row[0]]), *row[1:]] for row in rows] if replace else rows
            for before, texts in ((whole, rows), (shorter, blanked)):
                matches = sum(before + row == goal for row, goal in zip(texts, joined, strict=True))
                best = max(best, (matches, variant, before), key=lambda choice: choice[0])
            if best[0] == len(PROBES):
                break
        self._lacks_blank[side] = len(best[2]) < len(whole)
        return best[1], best[2]

    @staticmethod
    def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids


def _ids_of(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


def _bare(backend: Tokenizer, special: bool) -> Tokenizer:
    """A copy without truncation and padding. `special`: recognise special tokens in a text."""
    return _bared(Tokenizer.from_str(backend.to_str()), special)


def _bared(tokenizer: Tokenizer, special: bool = False) -> Tokenizer:
    """Switch off truncation and padding, without a copy: copying a large vocabulary takes seconds."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = not special
    return tokenizer


def _without_pieces(tokenizer: Tokenizer, spelled: list[str]) -> Tokenizer:
    """Rename these tokens so that no text contains them. Otherwise Unigram models would match them in a text."""
    settings = json.loads(tokenizer.to_str())
    renamed = {token: NO_TEXT + token for token in spelled}
    vocabulary = settings["model"]["vocab"]
    if isinstance(vocabulary, list):
        settings["model"]["vocab"] = [[renamed.get(token, token), score] for token, score in vocabulary]
    else:
        settings["model"]["vocab"] = {renamed.get(token, token): token_id for token, token_id in vocabulary.items()}
    settings["added_tokens"] = [token for token in settings["added_tokens"] if token["content"] not in renamed]
    return _bared(Tokenizer.from_str(json.dumps(settings)))


def _blanked(tokenizer: Tokenizer) -> np.ndarray:
    """(V,) the id of each token with a blank before it; its own id if there is no such token."""
    vocabulary = tokenizer.get_vocab()
    blanked_V = np.arange(1 + max(vocabulary.values()))
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    marker = next((mark for mark in BLANKS if any(token.startswith(mark) for token in vocabulary)), None)
    for token, token_id in vocabulary.items():
        if marker and token not in special and not token.startswith(marker):
            blanked_V[token_id] = vocabulary.get(marker + token, token_id)
    return blanked_V


def _variants(tokenizer: Tokenizer) -> Iterator[Tokenizer]:
    """The unchanged tokenizer; one that adds a blank before the text; one that does not add its own blank."""
    yield tokenizer
    blank = _bare(tokenizer, special=False)
    own = [blank.normalizer] if blank.normalizer else []
    blank.normalizer = normalizers.Sequence([normalizers.Prepend(" "), *own])
    yield blank
    settings = json.loads(tokenizer.to_str())
    _remove_blank(settings)
    yield _bared(Tokenizer.from_str(json.dumps(settings)))


def _remove_blank(node: Any) -> None:
    """Remove every setting of a tokenizer that adds a blank before a text."""
    if isinstance(node, list):
        node[:] = [part for part in node if not (isinstance(part, dict) and part.get("type") == "Prepend")]
        for part in node:
            _remove_blank(part)
    elif isinstance(node, dict):
        if node.get("type") == "ByteLevel":
            node["add_prefix_space"] = False
        elif node.get("type") == "Metaspace":
            node["prepend_scheme"] = "never"
        for key in ("normalizer", "pre_tokenizer", "normalizers", "pretokenizers"):
            if isinstance(node.get(key), dict) and node[key].get("type") == "Prepend":
                node[key] = None
            elif node.get(key):
                _remove_blank(node[key])


def _with_backend(tokenizer: "PreTrainedTokenizerFast", backend: Tokenizer) -> "PreTrainedTokenizerFast":
    """A tokenizer with this backend and the same padding token."""
    from transformers import PreTrainedTokenizerFast

    pad = tokenizer.pad_token
    tokens = {"pad_token": NO_TEXT + pad if backend.token_to_id(pad) is None else pad} if pad else {}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)  # makes its own copy


def prepare_tokenizer(tokenizer: Any, lower_case: bool) -> None:
    """Lower-case texts first, like sentence-transformers with `do_lower_case`. Set a padding token if there is none."""
    if lower_case:
        backend = tokenizer.backend_tokenizer
        own = [backend.normalizer] if backend.normalizer else []
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:  # decoders; padding is masked in any case
        tokenizer.pad_token = tokenizer.eos_token
