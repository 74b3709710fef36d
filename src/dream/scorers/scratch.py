"""A language model trained from nothing on the corpus itself: no download, minutes on a CPU."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from dream.candidates.bm25 import BM25Index
from dream.corpora.base import Corpus
from dream.errors import ConfigError
from dream.files import alone, fingerprint, new_directory, usable, write_json
from dream.runtime import say
from dream.scorers.base import CausalScorer, Scoring, longest_sequence
from dream.scorers.cache import LoglikCache
from dream.scorers.copy_curriculum import CopyCurriculum
from dream.scorers.gain import measure_gain
from dream.scorers.lm_module import Training, train
from dream.scorers.tokenizer import open_or_train_tokenizer
from dream.store.store import Store

LAYOUT = 1  # raise when the training below changes, so that cached scorers are made anew


class ScratchScorer(CausalScorer):
    """Its tokenizer is trained when it is made, its weights at the first `load`; both are cached below `data_dir`.

    `architecture` is a transformers config: `model_type` and the arguments of its class.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Mapping[str, int],
        architecture: Mapping[str, Any],
        training: Mapping[str, Any],
        scoring: Mapping[str, Any],
        data_dir: str,
        seed: int,
        cache: bool,
        cache_dir: str,
        cache_megabytes: int,
    ) -> None:
        self.corpus, self.architecture, self.seed = corpus, dict(architecture), seed
        self.training, self.data_dir = Training(**training), Path(data_dir)
        path = open_or_train_tokenizer(self.data_dir / "tokenizers", corpus, **tokenizer)
        kept = LoglikCache(Path(cache_dir), cache_megabytes) if cache else None
        super().__init__(PreTrainedTokenizerFast.from_pretrained(path), Scoring(**scoring), kept)

    def folder(self, store: Store) -> Path:
        """Where the weights for this store and these settings are kept."""
        description = {
            "layout": LAYOUT,
            "store": store.hash,
            "architecture": self.architecture,
            "training": self.training.description(),
            "template": list(self.scoring.template),
            "passage_tokens": self.scoring.max_passage_tokens,
            "seed": self.seed,
        }
        return self.data_dir / "scorers" / f"{self.corpus.name}-{fingerprint(description)}"

    def load(self, store: Store) -> None:
        folder = self.folder(store)
        training = folder.with_name(f"{folder.name}.training")
        if training.exists() or not usable(folder):
            with alone(training):
                if not usable(folder):  # another process may have trained it meanwhile
                    self._pretrain(store, folder, training)
        self.open(str(folder), store)

    def _pretrain(self, store: Store, folder: Path, training: Path) -> None:
        model = self._new_model(store)
        index = BM25Index.open_or_build(store, self.data_dir / "bm25")
        settings = self.training
        curriculum = CopyCurriculum(
            store,
            index,
            self.prompt,
            self.scoring.max_passage_tokens,
            settings.shares,
            settings.span_tokens,
            settings.several,
            settings.max_steps,
            settings.batch_size,
            self.seed,
        )
        size = sum(weight.numel() for weight in model.parameters()) / 1e6
        say(
            f"Pretraining a language model of {size:.1f} M weights on corpus {self.corpus.name}: {settings.max_steps} "
            f"steps of {settings.batch_size} sequences, once; kept in {folder}"
        )
        train(model, curriculum, settings, training)
        with new_directory(folder) as aside:
            model.save_pretrained(aside)
            self.tokenizer.save_pretrained(aside)
            self.open(str(aside), store)
            gain = measure_gain(self, store, index, settings.gain_windows, self.seed)
            write_json(aside / "gain.json", vars(gain))
        say(f"  gain of a helpful passage over a random one: {gain.best_of_neighbours:.3f} nats per token")

    def _new_model(self, store: Store) -> Any:
        options = dict(self.architecture)
        longest = longest_sequence(self.prompt, self.scoring, store, self.training.several["passages"])
        try:
            config = AutoConfig.for_model(
                options.pop("model_type"),
                vocab_size=len(self.tokenizer),
                max_position_embeddings=longest,
                bos_token_id=self.tokenizer.bos_token_id,
                eos_token_id=None,
                pad_token_id=self.tokenizer.pad_token_id,
                **options,
            )
            with torch.random.fork_rng():
                torch.manual_seed(self.seed)
                return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        except (KeyError, ValueError, TypeError) as error:
            raise ConfigError(
                "scorer.architecture", self.architecture, f"not a causal language model: {error}"
            ) from error
