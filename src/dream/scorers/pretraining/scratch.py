"""A small language model that is pretrained on the corpus, without a download, in minutes on a CPU."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from dream.corpora.base import Corpus
from dream.indexes.bm25 import BM25Index, bm25_settings
from dream.scorers.base import CausalScorer, Scoring, longest_sequence
from dream.scorers.pretraining.curriculum import SHARES, SPAN_TOKENS, CopyCurriculum
from dream.scorers.pretraining.gain import measure_gain
from dream.scorers.pretraining.module import Training, train
from dream.scorers.pretraining.tokenizer import open_or_train_tokenizer
from dream.store.store import Store
from dream.utils.atomic_io import fingerprint, write_json
from dream.utils.cached_folders import exclusive_workdir, new_directory, verify_or_discard
from dream.utils.errors import require
from dream.utils.logging import get_logger

log = get_logger(__name__)

LAYOUT = 2  # increase it when the pretraining changes; cached scorers are then trained again
HEAD_WIDTH = 64
PASSAGES = 8  # passages of a multi-passage sequence; the model has positions for this number
GAIN_WINDOWS = 512  # number of windows for measuring the gain after the training


class ScratchScorer(CausalScorer):
    """A small language model that is pretrained on the corpus at first use. Nothing is downloaded.

    The constructor trains the tokenizer, the first `load` trains the weights. Both are cached in `data_dir`.

    Args:
        corpus: text for the tokenizer and the model.
        vocabulary: number of entries of the byte-pair encoding.
        width: width of the hidden states: a multiple of 64, or an even number below 64.
        layers: number of layers. Short convolutions and attention alternate.
        training: fields of `Training`.
        scoring: fields of `Scoring`.
        data_dir: folder of cached tokenizers and weights.
        seed: seed of the initial weights and of the order of windows.
        cache_megabytes: size of the cache of log-likelihoods on disk; 0: no cache.

    Attributes:
        pretrains: whether `load` trains the weights if they are not cached. Otherwise they are random, for timing.

    Raises:
        ConfigError: a value is out of its range.
    """

    pretrains = True

    def __init__(
        self,
        corpus: Corpus,
        vocabulary: int,
        width: int,
        layers: int,
        training: Mapping[str, Any],
        scoring: Mapping[str, Any],
        data_dir: str,
        seed: int,
        cache_megabytes: int,
    ) -> None:
        require(layers >= 2, "scorer.layers", layers, "at least 2: one convolution, one attention")
        fits = width > 0 and (width % HEAD_WIDTH == 0 or (width < HEAD_WIDTH and width % 2 == 0))
        require(fits, "scorer.width", width, f"a multiple of {HEAD_WIDTH}, or an even number below")
        self.corpus, self.seed, self.width, self.architecture = corpus, seed, width, _architecture(width, layers)
        self.training, self.data_dir = Training(**training), Path(data_dir)
        path = open_or_train_tokenizer(self.data_dir / "tokenizers", corpus, vocabulary)
        super().__init__(PreTrainedTokenizerFast.from_pretrained(path), Scoring(**scoring), cache_megabytes)

    def folder(self, store: Store) -> Path:
        """Folder of the weights for this store and these settings."""
        description = {
            "layout": LAYOUT,
            "store": store.hash,
            "neighbours": bm25_settings(store.language),
            "architecture": self.architecture,
            "training": self.training.description(),
            "passages": PASSAGES,
            "template": self.scoring.template,
            "passage_tokens": self.scoring.max_passage_tokens,
            "seed": self.seed,
        }
        return self.data_dir / "scorers" / f"{self.corpus.name}-{fingerprint(description)}"

    def is_trained(self, store: Store) -> bool:
        """Whether the weights are cached."""
        return self.folder(store).is_dir()

    def load(self, store: Store) -> None:
        """Load the weights. If they are not cached, pretrain them first. An interrupted pretraining is resumed."""
        folder = self.folder(store)
        if not self.pretrains and not self.is_trained(store):
            self.use(self._new_model(store), store)
            return
        training = folder.with_name(f"{folder.name}.training")
        if training.exists() or not verify_or_discard(folder):
            with exclusive_workdir(training):
                if not verify_or_discard(folder):  # another process may have trained the model meanwhile
                    self._pretrain(store, folder, training)
        self.open(str(folder), store)

    def _pretrain(self, store: Store, folder: Path, training: Path) -> None:
        store = Store(store.path, store.language)  # the weights do not depend on what is asked later (data.target)
        model = self._new_model(store)
        index = BM25Index.open_or_build(store)
        settings = self.training
        curriculum = CopyCurriculum(
            store,
            index,
            self.prompt,
            passage_tokens=self.scoring.max_passage_tokens,
            shares=SHARES,
            span_tokens=SPAN_TOKENS,
            multi_passage_fraction=settings.multi_passage_fraction,
            passages=PASSAGES,
            steps=settings.max_steps,
            batch_size=settings.batch_size,
            seed=self.seed,
        )
        size = sum(weight.numel() for weight in model.parameters()) / 1e6
        log.info(
            f"Pretraining a language model of {size:.1f} M weights on corpus {self.corpus.name}: {settings.max_steps} "
            f"steps of {settings.batch_size} sequences; then cached in {folder}"
        )
        train(model, curriculum, settings, training, self.scoring.compile, self.device)
        windows = min(GAIN_WINDOWS, 4 * settings.max_steps)  # fewer windows after a short training
        with new_directory(folder) as unfinished:
            model.save_pretrained(unfinished)
            self.tokenizer.save_pretrained(unfinished)
            self.open(str(unfinished), store)
            gain = measure_gain(self, store, index, windows, self.seed)
            write_json(unfinished / "gain.json", vars(gain))
        log.info(f"  gain of the best neighbour over a random passage: {gain.best_of_neighbours:.3f} nats per token")

    def _new_model(self, store: Store) -> Any:
        config = AutoConfig.for_model(
            **self.architecture,
            vocab_size=len(self.tokenizer),
            max_position_embeddings=longest_sequence(self.prompt, self.scoring, store, PASSAGES),
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=None,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _architecture(width: int, layers: int) -> dict[str, Any]:
    """LFM2. Its short convolutions give each position the previous token, which copying by attention needs."""
    return {
        "model_type": "lfm2",
        "layer_types": [("conv", "full_attention")[layer % 2] for layer in range(layers)],
        "hidden_size": width,
        "intermediate_size": 11 * width // 4,
        "block_auto_adjust_ff_dim": False,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "num_key_value_heads": max(1, width // HEAD_WIDTH),
        "tie_word_embeddings": True,
    }
