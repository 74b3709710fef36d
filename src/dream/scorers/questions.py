"""Lets the language model write a question about each of some passages. The questions replace labelled queries.

The prompt shows examples of passages with a question (as InPars does, Bonifacio et al. 2022,
https://arxiv.org/abs/2202.05144), then the passage. The continuation is greedy, up to the end of the line. A small
model alone writes what is always likely ("what is the most common type of cancer"), so its words are chosen by what
the passage adds to their likelihood (`dream.scorers.contrast`). It still writes many bad questions. They do little
harm, because it then also judges how likely each question is given each candidate, and a bad question fits no passage
better than another.
"""

import copy
import json
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import LogitsProcessorList

from dream.scorers.base import CausalScorer
from dream.scorers.contrast import ContrastProcessor
from dream.store.permutation import permute
from dream.store.questions import TEXTS, Questions, save_tokens
from dream.store.store import SCORER, Store
from dream.utils.atomic_io import fingerprint
from dream.utils.cached_folders import unfinished_directory, verify_or_discard
from dream.utils.errors import require
from dream.utils.logging import get_logger
from dream.utils.runtime import progress

log = get_logger(__name__)

EXAMPLES = (
    ("Mitochondria use aerobic respiration to generate ATP, the cell's source of chemical energy.",
     "what do mitochondria do in a cell"),
    ("Scrub the cast iron pan with steel wool, wash it with warm soapy water, dry it and rub it with oil.",
     "how to remove rust from cast iron"),
    ('def area(r): """Return the area of a circle with radius r.""" return math.pi * r ** 2',
     "compute the area of a circle from its radius"),
)  # fmt: skip
HEAD = "".join(f"Passage: {passage}\nQuestion: {question}\n\n" for passage, question in EXAMPLES) + "Passage:"
TAIL = "\nQuestion:"
WRITTEN = "written.jsonl"  # all that was written, also what is left out of the questions
MOST_TOKENS = 16  # of a question
CODE = '()[]{}<>_=`"\\|;*@#/'  # excluded from questions: a question about code would be a copy of the code
CONTRAST = 1.0  # weight of the difference that the passage makes to a word
FEWEST_WORDS = 2
BATCHES = {"cpu": 64, "cuda": 512}  # passages that are continued together, by device
SEED = 20_261_127  # the passages are the same for all seeds of a run, so that runs share the questions


def open_or_write(scorer: CausalScorer, store: Store, tokenizers: Sequence, count: int) -> Questions:
    """The questions about `count` passages of the store (or about all passages), written if they are not cached.

    Questions of fewer than two words, and copies of an example, are left out. An interruption loses one batch.

    Args:
        scorer: the language model, loaded.
        store: the store of the corpus.
        tokenizers: of the encoder and of the scorer, as in the store.
        count: number of passages.

    Raises:
        ConfigError: the model has too few positions for the prompt, or runs on a server.
    """
    require(
        hasattr(scorer, "model"), "data.questions", count, "a server writes no questions; choose scorer=hf, or null"
    )
    prompt = len(_ids(scorer, HEAD)) + scorer.scoring.max_passage_tokens + len(_ids(scorer, TAIL)) + MOST_TOKENS
    require(prompt <= scorer.most_tokens, "data.questions", count, f"the prompt that asks for a question has up to "
            f"{prompt} tokens, but the model reads {scorer.most_tokens}; take another scorer, or null")  # fmt: skip
    settings = [
        scorer.weights_fingerprint,
        store.hash,
        HEAD,
        TAIL,
        MOST_TOKENS,
        CODE,
        CONTRAST,
        scorer.scoring.max_passage_tokens,
    ]
    name = f"{store.path.name.rpartition('-')[0]}-{fingerprint(settings)}"
    path = store.cache_folder("questions") / f"{name}-{count}"
    if not verify_or_discard(path):
        passages = permute(SEED, np.arange(min(count, len(store.passages))), len(store.passages))
        log.info(f"The language model writes questions about {len(passages):,} passages, once for this corpus")
        with unfinished_directory(path) as folder:
            others = [other / WRITTEN for other in sorted(path.parent.glob(f"{name}-*")) if verify_or_discard(other)]
            written = _write(scorer, store, passages, folder / WRITTEN, others)
            kept = {passage: text for passage, text in written.items() if _is_usable(text)}
            require(bool(kept), "data.questions", count, "the model wrote no question; take another scorer, or null")
            lines = [json.dumps({"passage": passage, "question": text}) + "\n" for passage, text in kept.items()]
            (folder / TEXTS).write_text("".join(lines), "utf-8")
            save_tokens(folder, list(kept), list(kept.values()), tokenizers)
    questions = Questions(path)
    log.info(
        f"{len(questions):,} questions, and {len(questions.held_out):,} held out, e.g. {'; '.join(questions.texts[:3])}"
    )
    return questions


def _write(
    scorer: CausalScorer, store: Store, passages: np.ndarray, file: Path, others: Sequence[Path]
) -> dict[int, str]:
    """Text by passage. The file holds what is written so far, also by an interrupted run.

    The first n passages are the same for all counts, so the files of other counts have questions to take over.
    """
    rows = [row for known in (*others, file) if known.exists() for row in _complete_rows(known)]
    written = {row["passage"]: row["question"] for row in rows}
    left = [int(passage) for passage in passages if int(passage) not in written]
    left.sort(key=lambda passage: len(scorer.passage(store, passage)))  # batches of similar length need less padding
    with progress(
        total=len(passages), initial=len(passages) - len(left), unit="question", desc="writing questions"
    ) as bar:
        size = min(len(left), BATCHES.get(scorer.device.type, BATCHES["cpu"]))
        while left:
            batch = left[:size]
            try:
                texts = _continue(scorer, [store.passage_tokens(passage, SCORER) for passage in batch])
            except torch.OutOfMemoryError:  # of a GPU
                if size == 1:
                    raise
                size //= 2
                continue
            left = left[size:]
            with file.open("a", encoding="utf-8") as lines:
                pairs = zip(batch, texts, strict=True)
                lines.writelines(json.dumps({"passage": passage, "question": text}) + "\n" for passage, text in pairs)
            written |= dict(zip(batch, texts, strict=True))
            bar.update(len(batch))
    return {int(passage): written[int(passage)] for passage in passages}


def _complete_rows(file: Path) -> list[dict]:
    """Rows of the file; a last line that was cut off by an interruption is removed."""
    lines = file.read_bytes().splitlines(keepends=True)
    complete = [line for line in lines if line.endswith(b"\n")]
    if len(complete) < len(lines):
        file.write_bytes(b"".join(complete))
    return [json.loads(line) for line in complete]


@torch.no_grad()
def _continue(scorer: CausalScorer, passages: list[np.ndarray]) -> list[str]:
    """The question that the model writes after each passage."""
    tokenizer, ends = scorer.tokenizer, _ends_of_line(scorer.tokenizer)
    code = sorted(set(_tokens_with(CODE, tokenizer)) - set(ends))
    head, tail = _ids(scorer, HEAD), _ids(scorer, TAIL)
    rows = [[*passage[: scorer.scoring.max_passage_tokens].tolist(), *tail] for passage in passages]
    longest = max(map(len, rows))
    ids = torch.tensor([head + [0] * (longest - len(row)) + row for row in rows], device=scorer.device)
    padding = [[1] * len(head) + [0] * (longest - len(row)) + [1] * len(row) for row in rows]
    with scorer.no_autocast():
        # The examples are read once, not once a passage.
        cache = scorer.model(input_ids=ids[:1, : len(head)], use_cache=True, logits_to_keep=1).past_key_values
        contrast = ContrastProcessor(scorer.model, copy.deepcopy(cache), tail, CONTRAST)
        cache.batch_repeat_interleave(len(rows))
        continued = scorer.model.generate(
            input_ids=ids, attention_mask=torch.tensor(padding, device=scorer.device), past_key_values=cache,
            max_new_tokens=MOST_TOKENS, do_sample=False, eos_token_id=ends, pad_token_id=0,
            suppress_tokens=code, logits_processor=LogitsProcessorList([contrast]),
        )  # fmt: skip
    written = [_up_to_end(row, ends) for row in continued[:, ids.shape[1] :].tolist()]
    return [_question(text) for text in tokenizer.batch_decode(written, skip_special_tokens=True)]


def _up_to_end(ids: list[int], ends: Collection[int]) -> list[int]:
    """The ids up to the first one of `ends`. After it is padding, which some tokenizers read as text ("!")."""
    end = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return ids[: end + 1]


def _question(text: str) -> str:
    """The text up to the end of its line, or up to its first question mark."""
    words, mark, _ = text.partition("\n")[0].partition("?")
    return words.strip() + mark


def _ids(scorer: CausalScorer, text: str) -> list[int]:
    return scorer.tokenizer(text, add_special_tokens=False)["input_ids"]


def _ends_of_line(tokenizer) -> list[int]:
    """Ids of all tokens with a line break, and of the token that ends a text."""
    ends = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return [*ends, *_tokens_with({"\u010a", "\n", "<0x0A>"}, tokenizer)] or [0]


def _tokens_with(parts: Collection[str], tokenizer) -> list[int]:
    """Ids of the tokens that have one of these parts."""
    return [token_id for token, token_id in tokenizer.get_vocab().items() if any(part in token for part in parts)]


def _is_usable(text: str) -> bool:
    return len(text.split()) >= FEWEST_WORDS and text not in {question for _, question in EXAMPLES}
