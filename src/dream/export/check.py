"""Compares an exported encoder with the run's own, on texts of the corpus and on texts that are easily read wrongly."""

from typing import Any

import numpy as np
import torch

from dream.encoders.base import Encoder, Side
from dream.encoders.hf import HFEncoder
from dream.evaluation.labelled_queries import LabelledQueries
from dream.evaluation.metrics import Judgements, Ranking, per_query_metrics
from dream.evaluation.ranking import rank_dense
from dream.export.base import Embed, Job
from dream.store.permutation import permute
from dream.utils.errors import DataError, DreamError
from dream.utils.logging import get_logger

log = get_logger(__name__)

MOST_NDCG = 0.005  # difference in nDCG@10 that int8 weights may make
TOP = 10  # documents of a ranking that are compared without labels
SAMPLE_SEED = 20_261_126  # fixed: every check of a run reads the same texts
SHOWN = 60  # characters of a text in a message
# Capitals, unknown words, other scripts, combining marks, white space and signs.
PROBES = ("UPPER CASE, Mixed Case and lower case", "zxqvk wqqzz xyzzyplugh", "a", "the", "?!… (—) _under_score_",
          "漢字とかな, Ελληνικά, Русский, العربية", "cafe\u0301 café naı\u0308ve", "tab\tline\nbreak  two blanks ", " ",
          "🦊 fox 👩‍👩‍👧", "1234567890 3.14 1e-5", "x" * 400)  # fmt: skip


def texts_of(job: Job) -> dict[Side, list[str]]:
    """The texts to compare: labelled queries, passages, a text that is too long, and `PROBES`."""
    store = job.run.store
    rows = sample(len(store.passages), job.checks.texts)
    passages = [store.passage_text(int(row)) for row in rows]
    labelled = labelled_queries(job)
    queries = list(labelled.queries) if labelled else [text[:100] for text in passages]
    encoder = job.encoder
    words = " ".join(passages).split() or ["word"]
    long = " ".join((words * (1 + 2 * encoder.max_tokens // len(words)))[: 2 * encoder.max_tokens])
    probes = [*PROBES, long, long.upper()]
    return {"query": [*queries, *probes, *_special_texts(encoder, "query")],
            "passage": [*passages, *probes, *_special_texts(encoder, "passage")]}  # fmt: skip


def _special_texts(encoder: Encoder, side: Side) -> list[str]:
    """The empty text, and a text with the spelling of special tokens.

    The empty text is left out if the encoder would then read no token at all. The spelling is left out if a prefix
    contains special tokens: other programs then also recognise them in texts.
    """
    spelled = [f"before {token} after" for token in encoder.tokenizer.all_special_tokens if token.strip("\0")]
    if not isinstance(encoder, HFEncoder):
        return ["", *spelled]
    framing = encoder.framing
    empty = [""] if framing.length(side, 0) else []
    return [*empty, *(spelled if framing.keeps_special_texts else [])]


def compare_vectors(job: Job, embed: Embed, lowest: float) -> dict[str, Any]:
    """Raise DataError if the cosine with the run's vector is below `lowest` for any text."""
    found: dict[str, Any] = {"texts": 0, "lowest_cosine": 1.0}
    for side, texts in texts_of(job).items():
        own_BD = job.run.encoder.embed_texts(texts, side).float().cpu().numpy()
        cosine_B = cosines(own_BD, embed(texts, side))
        worst = int(np.nan_to_num(cosine_B, nan=-1.0).argmin())
        if not cosine_B[worst] >= lowest:
            shown = repr(texts[worst][:SHOWN] + "…" * (len(texts[worst]) > SHOWN))
            raise DataError(f"the export gives other vectors than the run: cosine {cosine_B[worst]:.7f} instead of at "
                            f"least {lowest}, for the {side} {shown}; nothing was written")  # fmt: skip
        found["texts"] += len(texts)
        found["lowest_cosine"] = min(found["lowest_cosine"], float(cosine_B[worst]))
    return found


def cosines(one_BD: np.ndarray, other_BD: np.ndarray) -> np.ndarray:
    """(B,) cosine of each row; 1 if both rows are zero, as for a text without tokens."""
    if one_BD.shape != other_BD.shape:
        raise DataError(f"the export gives {other_BD.shape} values instead of {one_BD.shape}; nothing was written")
    one_BD, other_BD = one_BD.astype(np.float64), other_BD.astype(np.float64)
    product_B = np.linalg.norm(one_BD, axis=1) * np.linalg.norm(other_BD, axis=1)
    both_zero_B = ~one_BD.any(1) & ~other_BD.any(1)
    return np.where(both_zero_B, 1.0, (one_BD * other_BD).sum(1) / np.where(product_B == 0, 1.0, product_B))


def labelled_queries(job: Job) -> LabelledQueries | None:
    """The labelled queries to compare; None if the corpus has none, or if its files are no longer there."""
    split = job.checks.split
    try:
        if split not in job.corpus.splits():
            return None
        return LabelledQueries(job.corpus, job.run.store, split, job.checks.queries)
    except (DreamError, OSError) as error:
        log.info(f"Labels of split {split} are not used: {error}")
        return None


def compare_rankings(job: Job, embed: Embed) -> dict[str, Any]:
    """Compare the rankings of a part of the corpus by approximate vectors with those by the run's encoder.

    With labels: raise DataError if nDCG@10 falls by more than `MOST_NDCG`. Without labels, beginnings of passages are
    the queries, and the share of the first ten documents that stay the same is returned.
    """
    store, labelled = job.run.store, labelled_queries(job)
    relevant = {row for graded in labelled.judgements.grades for row in graded} if labelled else set()
    is_relevant = np.isin(store.passage_documents, list(relevant))
    passages = np.concatenate([np.flatnonzero(is_relevant), sample(len(store.passages), job.checks.passages)])
    passages = np.unique(passages)
    texts = [store.passage_text(int(row)) for row in passages]
    queries = list(labelled.queries) if labelled else [text[:100] for text in texts[:: 1 + len(texts) // 200]]
    documents = store.passage_documents[passages]
    own_QD, other_QD = _both(job.run.encoder, embed, queries, "query")
    own_ND, other_ND = _both(job.run.encoder, embed, texts, "passage")
    own, other = _rank(own_QD, own_ND, documents), _rank(other_QD, other_ND, documents)
    cosine_B = cosines(own_ND, other_ND)
    found: dict[str, Any] = {"queries": len(queries), "passages": len(passages), "same_top_10": _shared(own, other),
                             "mean_cosine": float(cosine_B.mean()), "lowest_cosine": float(cosine_B.min())}  # fmt: skip
    if labelled:
        found |= _ndcg(own, other, labelled.judgements)
        if found["ndcg_at_10_run"] - found["ndcg_at_10"] > MOST_NDCG:
            raise DataError(f"weights=int8: nDCG@10 falls from {found['ndcg_at_10_run']:.4f} to "
                            f"{found['ndcg_at_10']:.4f}, by more than {MOST_NDCG}; nothing was written; use "
                            "weights=float32")  # fmt: skip
    return found


def sample(count: int, most: int) -> np.ndarray:
    """At most `most` numbers below `count`, always the same ones, ascending."""
    return np.sort(permute(SAMPLE_SEED, np.arange(min(count, most)), count))


def _both(encoder: Encoder, embed: Embed, texts: list[str], side: Side) -> tuple[np.ndarray, np.ndarray]:
    return encoder.embed_texts(texts, side).float().cpu().numpy(), embed(texts, side)


def _rank(query_QD: np.ndarray, passage_ND: np.ndarray, documents: np.ndarray) -> Ranking:
    def search(query_QD: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        sim_QK, ids_QK = (query_QD @ torch.from_numpy(passage_ND).T).topk(k, dim=1)
        return sim_QK, ids_QK

    return rank_dense(search, torch.from_numpy(query_QD), documents)


def _shared(own: Ranking, other: Ranking) -> float:
    """Mean share of the first `TOP` documents that both rankings have."""
    pairs = zip(own.rows_QR[:, :TOP], other.rows_QR[:, :TOP], strict=True)
    return float(np.mean([len(np.intersect1d(a[a >= 0], b[b >= 0])) / max(1, (a >= 0).sum()) for a, b in pairs]))


def _ndcg(own: Ranking, other: Ranking, judgements: Judgements) -> dict[str, float]:
    own_Q, other_Q = (per_query_metrics(ranking, judgements)["ndcg_at_10"] for ranking in (own, other))
    return {"ndcg_at_10_run": float(own_Q.mean()), "ndcg_at_10": float(other_Q.mean())}
