"""Which attention heads teach a student best: on the same windows, candidates and passes of the language model.

    PYTHONPATH=benchmarks dream-train -m seed=0,1,2 experiment=questions '~objective.lm_temperature' \\
        objective=attention objective._target_=head_students.LinearAttention objective.heads=found,random,all \\
        objective.count=16 …                                                    # also head_students.HeadPosterior
    PYTHONPATH=benchmarks dream-train … experiment=questions \\
        objective=leave_one_out objective._target_=head_students.SavedLeaveOneOut …
    PYTHONPATH=benchmarks dream-train … experiment=questions '~objective.lm_temperature' \\
        objective=marginal objective._target_=head_students.SavedMarginal …
    PYTHONPATH=benchmarks dream-train … experiment=adapt_questions '~objective.lm_temperature' '~objective.target' \\
        objective=attention objective._target_=head_students.HeadJointPosterior objective.heads=… objective.count=16 …

`LinearAttention` is `objective=attention`, linearised: the loss of a window is -Σ_k p_k · g_k. g_k is the derivative of
the mean log-likelihood of its target by the weight of passage k, where the chosen heads give all passages the same
weight. g does not depend on the retriever. So it is computed once a window, for all groups of heads together, and
saved in data/head_students. Runs of other objectives with the same seed have the same windows and candidates.
`SavedLeaveOneOut` and `SavedMarginal` are the project's objectives, and read what the language model says from there.

Shapes: S scored windows, K candidates of a window, G groups of heads, H heads, R rows, T tokens, V vocabulary.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dream.objectives.attention import Attention
from dream.objectives.base import Candidates, LossInputs, LossOutput
from dream.objectives.joint_posterior import JointPosterior
from dream.objectives.kl_posterior import KLPosterior
from dream.objectives.leave_one_out import LeaveOneOut
from dream.objectives.marginal import Marginal
from dream.scorers.attention.heads import choose_heads
from dream.scorers.attention.injection import Heads, injectable, owners, probabilities, reweigh
from dream.scorers.base import CausalScorer
from dream.scorers.candidate_scores import CandidateScores, read_passages
from dream.store.store import Store
from dream.utils.atomic_io import fingerprint

LM_TEMPERATURE = 4.0  # of experiment=questions
UNTRAINED_TEMPERATURE = 0.05  # of objective=joint_posterior
FOUND, RANDOM, SEEDS = (4, 16), 16, (0, 1, 2)  # numbers of heads, and seeds of the random ones


class Groups:
    """The attention of G equal sequences. In each, another group of heads weights the passages.

    Args:
        owner_T: passage of each token, -1 outside all passages.
        weights_GK: weights of the passages.
        groups: the heads of each sequence.
    """

    def __init__(self, owner_T: Tensor, weights_GK: Tensor, groups: list[Heads]) -> None:
        self.owner_T, self.weights_GK, self.groups = owner_T, weights_GK, groups

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> Tensor:
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
        attention_GHRT = probabilities(query, key, mask, **kwargs)
        weights_GHRK = self.weights_GK[:, None, None].to(attention_GHRT.dtype)
        weighted_GHRT = reweigh(attention_GHRT, owners(self.owner_T, *attention_GHRT.shape[2:]), weights_GHRK, "keep")
        chosen_GH11 = torch.zeros(*attention_GHRT.shape[:2], 1, 1, dtype=torch.bool)
        for number, heads in enumerate(self.groups):
            chosen_GH11[number, list(heads.get(module.layer_idx, ()))] = True
        attention_GHRT = weighted_GHRT.where(chosen_GH11, attention_GHRT)
        return (attention_GHRT.to(value.dtype) @ value).transpose(1, 2)


def gradients(scores: CandidateScores, groups: list[Heads]) -> Tensor:
    """gradient_SGK of the mean log-likelihood of a window's target by the weights of its candidates, nats per token."""
    scorer, rows = scores.scorer, []
    with scorer.no_autocast(), injectable(scorer.model):
        for window_id, candidates in zip(scores.window_ids_S.tolist(), scores.candidate_ids_SK.tolist(), strict=True):
            given, scored = scores.store.scored_tokens(window_id)
            passages = [scorer.passage(scores.store, passage_id) for passage_id in candidates]
            ids_T = torch.from_numpy(scorer.prompt.join_passages(passages, given, scored))
            window_R = ids_T[len(ids_T) - len(scored) - 1 :]
            memory, owner_T = read_passages(scorer, passages, ids_T[: len(ids_T) - len(window_R)])
            memory.batch_repeat_interleave(len(groups))
            weights_GK = torch.full((len(groups), len(candidates)), 1 / len(candidates), requires_grad=True)
            with torch.enable_grad():
                attend = Groups(owner_T, weights_GK, groups)
                ids_GR = window_R[:-1].expand(len(groups), -1)
                logits_GRV = scorer.model(
                    input_ids=ids_GR, past_key_values=memory, use_cache=True, attend=attend
                ).logits
                log_p_GRV = logits_GRV[:, -len(scored) :].float().log_softmax(2)
                loglik_GR = log_p_GRV.gather(2, window_R[-len(scored) :].expand(len(groups), -1)[..., None])
            rows.append(torch.autograd.grad(loglik_GR.sum() / len(scored), weights_GK)[0])
    return torch.stack(rows)


class Saved:
    """An array for each window and its candidates, in a file of data/head_students."""

    def __init__(self, store: Store, *made_of: Any) -> None:
        self.file = store.cache_folder("head_students") / f"{fingerprint([store.scoring_hash, *made_of])}.npz"
        self.known: dict[str, np.ndarray] = {}
        if self.file.exists():
            with np.load(self.file) as arrays:
                self.known = dict(arrays)

    def get(
        self, scores: CandidateScores, compute: Callable[[CandidateScores], Iterable[np.ndarray]]
    ) -> list[np.ndarray]:
        """The arrays of these windows. `compute` gives those of windows that the file lacks."""
        keys = [f"{window} {found}" for window, found in zip(scores.window_ids_S.tolist(),
                                                            scores.candidate_ids_SK.tolist(), strict=True)]  # fmt: skip
        if new := [row for row, key in enumerate(keys) if key not in self.known]:
            ids = scores.window_ids_S[new], scores.candidate_ids_SK[new]
            missing = CandidateScores(scores.scorer, scores.store, *ids, scores.timer)
            self.known |= {keys[row]: array for row, array in zip(new, compute(missing), strict=True)}
            self.file.parent.mkdir(parents=True, exist_ok=True)
            part = self.file.with_suffix(f".{os.getpid()}.npz")  # several runs may write
            np.savez(part, **self.known)  # type: ignore[arg-type]
            part.replace(self.file)
        return [self.known[key] for key in keys]


class LinearAttention(Attention):
    """See the file. Settings as for `Attention`; heads are `all`, `found` of `FOUND`, or `random` of `SEEDS`."""

    saved: Saved

    def prepare(self, scorer: CausalScorer, store: Store, k: int) -> None:
        super().prepare(scorer, store, k)
        choose = lambda heads, count, seed: choose_heads(heads, count, seed, scorer, store, self.finder)  # noqa: E731
        self.groups = {f"found {count}": choose("found", count, 0) for count in FOUND}
        self.groups |= {f"random {RANDOM} {seed}": choose("random", RANDOM, seed) for seed in SEEDS}
        self.groups["all"] = choose("all", 1, 0)
        self.saved = Saved(store, scorer.fingerprint, sorted(self.groups.items()))

    def window_losses(self, candidates: Candidates) -> tuple[Tensor, Tensor | None]:
        weights_SK = torch.softmax(candidates.sim_SK / self.temperature, dim=1)
        return -(weights_SK * self.gradient(candidates.scores)).sum(1), None

    def gradient(self, scores: CandidateScores) -> Tensor:
        """gradient_SK of the chosen heads."""
        rows = self.saved.get(scores, lambda missing: gradients(missing, list(self.groups.values())).numpy())
        name = {"all": "all", "found": f"found {self.count}", "random": f"random {self.count} {self.seed}"}[self.heads]
        group = list(self.groups).index(name)
        return torch.from_numpy(np.stack([row[group] for row in rows]))


class HeadPosterior(LinearAttention):
    """`objective=kl_posterior`, with the heads' gradient in place of the log-likelihoods, scaled to their spread.

    So the judgements of different heads, and of the log-likelihoods, have the same strength in the loss.
    """

    def __call__(self, inputs: LossInputs) -> LossOutput:
        return _ScaledGradient(self)(inputs)


class _ScaledGradient(KLPosterior):
    def __init__(self, heads: LinearAttention) -> None:
        super().__init__(heads.temperature, LM_TEMPERATURE, "forward", True, heads.continuation, None, 1.0)
        self.heads = heads

    def candidate_loglik(self, candidates: Candidates) -> Tensor:
        return scaled_gradient(self.heads, candidates)


class HeadJointPosterior(LinearAttention):
    """`objective=joint_posterior` of experiment=adapt_questions, with the heads' gradient, scaled as above."""

    needs_untrained = True

    def __call__(self, inputs: LossInputs) -> LossOutput:
        return _ScaledJointGradient(self)(inputs)


class _ScaledJointGradient(JointPosterior):
    def __init__(self, heads: LinearAttention) -> None:
        super().__init__(
            UNTRAINED_TEMPERATURE, "best_passage", temperature=heads.temperature, lm_temperature=LM_TEMPERATURE,
            direction="forward", in_batch=True, continuation=heads.continuation, null_similarity=None,
            unhelped_weight=1.0,
        )  # fmt: skip
        self.heads = heads

    def candidate_loglik(self, candidates: Candidates) -> Tensor:
        return scaled_gradient(self.heads, candidates)


def scaled_gradient(heads: LinearAttention, candidates: Candidates) -> Tensor:
    """gradient_SK of the heads, with the spread that the log-likelihoods of these candidates have."""
    gradient_SK, loglik_SK = heads.gradient(candidates.scores), candidates.scores.loglik_SK
    spread, wanted = ((part - part.mean(1, keepdim=True)).std() for part in (gradient_SK, loglik_SK))
    return gradient_SK * (wanted / spread)


class SavedLeaveOneOut(LeaveOneOut):
    """`objective=leave_one_out`, with saved log-likelihoods."""

    def prepare(self, scorer: CausalScorer, store: Store, k: int) -> None:
        super().prepare(scorer, store, k)
        self.saved = Saved(store, scorer.fingerprint, "leave one out")

    def candidate_loglik(self, candidates: Candidates) -> Tensor:
        scores = candidates.scores
        rows = self.saved.get(scores, lambda missing: missing.without_SK.numpy())
        scores.without_SK = torch.from_numpy(np.stack(rows))
        return super().candidate_loglik(candidates)


class SavedMarginal(Marginal):
    """`objective=marginal`, with saved log-likelihoods of tokens."""

    def prepare(self, scorer: CausalScorer, store: Store, k: int) -> None:
        super().prepare(scorer, store, k)
        self.saved = Saved(store, scorer.fingerprint, "tokens")

    def window_losses(self, candidates: Candidates) -> tuple[Tensor, Tensor | None]:
        rows = [torch.from_numpy(row.T) for row in self.saved.get(candidates.scores, _tokens)]
        loglik_STK = pad_sequence(rows, batch_first=True)
        mask_ST = pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True)
        candidates.scores.token_loglik = loglik_STK.transpose(1, 2), mask_ST
        return super().window_losses(candidates)


def _tokens(scores: CandidateScores) -> list[np.ndarray]:
    """For each window, the log-likelihoods of its target's tokens, of shape (candidates, tokens)."""
    loglik_SKT, mask_ST = scores.token_loglik
    return [loglik_KT[:, mask_T].numpy() for loglik_KT, mask_T in zip(loglik_SKT, mask_ST, strict=True)]
