"""A scorer that uses any causal language model of transformers."""

from collections.abc import Mapping
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from dream.corpora.base import Corpus
from dream.scorers.base import CausalScorer, Scoring
from dream.scorers.prompt import special_ids
from dream.store.store import Store
from dream.utils.errors import require_installed
from dream.utils.pretrained import Pretrained

KEY = "scorer.name"
REMEDY = "choose a decoder, e.g. Qwen/Qwen2.5-0.5B"


class HFScorer(CausalScorer):
    """A published language model. It is not trained, so the corpus is not used.

    The constructor reads tokenizer and config and checks the files. So an unsuitable model is reported before the
    corpus is prepared. `load` reads the weights.

    Args:
        corpus: not used. All scorers have this argument.
        name: hub name or local folder.
        scoring: the fields of `Scoring`.
        trust_remote_code: run Python code from the model's repository.
        cache_megabytes: size of the cache of log-likelihoods; 0 for none.
        device_map: where accelerate puts the layers, e.g. cuda or auto; None: on the trainer's device.

    Raises:
        ConfigError: a value is impossible, or the model cannot be a scorer.
    """

    def __init__(
        self,
        corpus: Corpus | None,
        name: str,
        scoring: Mapping[str, Any],
        trust_remote_code: bool,
        cache_megabytes: int,
        device_map: str | None = None,
    ) -> None:
        if device_map is not None:
            require_installed(["accelerate"], "accelerate", "scorer.device_map", device_map)
        source = Pretrained(KEY, name, trust_remote_code)
        config = source.config()
        if reason := why_not_causal(config):
            raise source.refuse(reason, REMEDY)
        tokenizer = source.tokenizer()
        if rows := getattr(config.get_text_config(), "vocab_size", None):
            source.require_rows(tokenizer, rows, special_ids(scoring["template"], tokenizer))
        super().__init__(tokenizer, Scoring(**scoring), cache_megabytes)
        self.name, self.trust_remote_code, self.device_map = name, trust_remote_code, device_map
        self.width = getattr(config.get_text_config(), "hidden_size", 0)

    def load(self, store: Store) -> None:
        """Read the weights. If `name` is a hub name that is not cached, they are downloaded."""
        self.open(self.name, store, self.trust_remote_code, self.device_map)


def why_not_causal(config: Any) -> str:
    """Why a model with this config cannot be a scorer; empty if it can. Its tokens must not see later tokens."""
    kind = config.model_type
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not hasattr(config, "auto_map"):
        return f"{kind} is no causal language model"
    masked = MODEL_FOR_MASKED_LM_MAPPING.get(type(config), None) is not None
    if getattr(config, "is_encoder_decoder", False) or (masked and not getattr(config, "is_decoder", False)):
        return f"{kind} reads a text in both directions, so it sees the target that it should predict"
    return ""
