"""Words that the passage makes likely, instead of words that are always likely.

Shape suffixes: B texts that are continued together, V vocabulary.
"""

import math

import torch
from torch import Tensor, nn
from transformers import Cache, LogitsProcessor

PLAUSIBLE = 0.1  # of the likeliest word: less likely words are not chosen


class ContrastProcessor(LogitsProcessor):
    """Context-aware decoding: scores are log p(word | passage) + weight * (log p(word | passage) - log p(word)).

    Source: Shi et al. 2024, https://arxiv.org/abs/2305.14739. Words that are less than a tenth as likely as the
    likeliest are excluded, as in contrastive decoding (Li et al. 2023, https://arxiv.org/abs/2210.15097).

    Args:
        model: the language model that continues the texts.
        cache: its keys and values of the prompt up to the passage, for one text. The processor changes it.
        tail: token ids of the prompt after the passage.
        weight: of the difference. 0 gives the language model's own likelihood.
    """

    def __init__(self, model: nn.Module, cache: Cache, tail: list[int], weight: float) -> None:
        self.model, self.cache, self.tail, self.weight = model, cache, tail, weight
        self.is_first = True

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) scores of the next word, from the (B, length) texts and their (B, V) scores given the passages."""
        count = len(input_ids)
        if self.is_first:
            self.cache.batch_repeat_interleave(count)
        new = input_ids.new_tensor([self.tail] * count) if self.is_first else input_ids[:, -1:]
        self.is_first = False
        alone = self.model(input_ids=new, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        given_BV = torch.log_softmax(scores.float(), dim=-1)
        added_BV = given_BV - torch.log_softmax(alone.logits[:, -1].float(), dim=-1)
        least_B1 = given_BV.max(dim=-1, keepdim=True).values + math.log(PLAUSIBLE)
        return (given_BV + self.weight * added_BV).masked_fill(given_BV < least_B1, -math.inf)
