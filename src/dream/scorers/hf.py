"""Any causal language model of transformers as the scorer."""

from collections.abc import Mapping
from typing import Any

from transformers import AutoTokenizer

from dream.corpora.base import Corpus
from dream.scorers.base import CausalScorer, Scoring
from dream.store.store import Store
from dream.utils.errors import ConfigError, require


class HFScorer(CausalScorer):
    """`name` is a hub name or a local folder. The corpus is not used: the model is what it is."""

    def __init__(
        self,
        corpus: Corpus | None,
        name: str,
        scoring: Mapping[str, Any],
        trust_remote_code: bool,
        cache_megabytes: int,
    ) -> None:
        require(bool(name), "scorer.name", name, "a hub name or a local folder, e.g. Qwen/Qwen2.5-0.5B")
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        except (OSError, ValueError) as error:
            raise ConfigError("scorer.name", name, f"cannot be loaded: {str(error).splitlines()[0]}") from error
        super().__init__(tokenizer, Scoring(**scoring), cache_megabytes)
        self.name, self.trust_remote_code = name, trust_remote_code

    def load(self, store: Store) -> None:
        """Read the weights; from the network where `name` is a hub name that is not cached."""
        self.open(self.name, store, self.trust_remote_code)
