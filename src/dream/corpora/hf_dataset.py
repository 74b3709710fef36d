"""Documents of a data set of the Hugging Face hub, or of a local folder that the `datasets` library reads."""

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from dream.corpora.readers import Records
from dream.corpora.record_corpus import RecordCorpus
from dream.corpora.source_file import SourceFile
from dream.utils.errors import ConfigError, DataError, first_line, require, require_installed

ROWS_AT_ONCE = 64
SAVED = ("state.json", "dataset_dict.json")  # files of a folder that was written by save_to_disk


class HFDatasetCorpus(RecordCorpus):
    """Each row of one split is a record. Only the columns of the fields are read.

    Args:
        dataset: Name on the hub, or a local folder: written by `save_to_disk`, or with Parquet, JSON or CSV files.
        subset: Subset of the data set; None: its only or default one.
        split: Split of the data set, e.g. `train`.
        revision: Commit, tag or branch on the hub; None: the newest.
        streaming: Read row by row, without a copy in the library's cache. A name on the hub is downloaded each time
            that the corpus is read.

    The other arguments are those of `RecordCorpus`.

    Raises:
        ConfigError: The data set, the subset or the split does not exist, or cannot be fetched.
    """

    def __init__(
        self,
        dataset: str,
        subset: str | None,
        split: str,
        revision: str | None,
        streaming: bool,
        **records: Any,
    ) -> None:
        require_installed(["datasets"], "datasets", "corpus", "hf_dataset")
        super().__init__(**records)
        self.dataset, self.subset, self.split, self.revision = dataset, subset, split, revision
        self.streaming = streaming
        folder = Path(dataset).expanduser()
        self.folder = folder if folder.is_dir() else None
        self.file = f"{dataset}[{split}]"

    def fingerprint(self) -> dict[str, Any]:
        """A local folder counts with the bytes of its files, a name on the hub with its commit."""
        source: dict[str, Any]
        if self.folder:
            source = {"files": [[str(file.path.relative_to(self.folder)), file.fingerprint()] for file in self._files]}
        else:
            source = {"name": self.dataset, "config": self._builder.config_id, "hash": self._builder.hash}
        return {"kind": "hf_dataset", "subset": self.subset, "split": self.split, **source} | self.content()

    def size_bytes(self) -> int:
        if self.folder:
            return sum(file.text_bytes() for file in self._files)
        info = self._builder.info
        split = (info.splits or {}).get(self.split)
        return (split and split.num_bytes) or info.dataset_size or info.download_size or 0

    def records(self) -> Records:
        data = self._open()
        columns = data.column_names
        if columns:  # a stream may not know them before the first row
            self.fields.require_text(self.file, columns)
            data = data.select_columns([c for c in columns if c in {name.split(".")[0] for name in self.fields.names}])
        number = 0
        try:
            for rows in data.iter(ROWS_AT_ONCE):
                for record in _records(rows):
                    number += 1
                    yield number, record
        except (OSError, ValueError) as error:
            raise DataError(f"{self.file}:{number + 1}: cannot be read ({first_line(error)}); {number:,} rows are "
                            "before it: fetch or write the file again") from error  # fmt: skip
        except Exception as error:
            if not _of_library(error):
                raise
            raise DataError(f"{self.file}:{number + 1}: cannot be read ({first_line(error)})") from error

    def _open(self) -> Any:
        """The split as a `Dataset`, or as an `IterableDataset` with `streaming`."""
        import datasets

        if not self._saved:
            with _named_errors(self):
                return datasets.load_dataset(
                    str(self.folder or self.dataset),
                    self.subset,
                    split=self.split,
                    revision=self.revision,
                    streaming=self.streaming,
                )
        data = datasets.load_from_disk(str(self.folder))
        if isinstance(data, datasets.DatasetDict):
            require(self.split in data, "corpus.split", self.split, f"choose one of {', '.join(data)}")
            return data[self.split]
        return data

    @property
    def _saved(self) -> bool:
        return self.folder is not None and any((self.folder / name).is_file() for name in SAVED)

    @cached_property
    def _files(self) -> list[SourceFile]:
        assert self.folder is not None
        found = sorted(file for file in self.folder.rglob("*") if file.is_file() and not file.name.startswith("."))
        require(bool(found), "corpus.dataset", self.dataset, "this folder has no files")
        return [SourceFile(file) for file in found]

    @cached_property
    def _builder(self) -> Any:
        import datasets

        with _named_errors(self):
            return datasets.load_dataset_builder(self.dataset, self.subset, revision=self.revision)


class _named_errors:
    """Turns errors of the library into a ConfigError of the key that is probably wrong, or a DataError of the file."""

    def __init__(self, corpus: HFDatasetCorpus) -> None:
        self.corpus = corpus

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if error is None:
            return
        text, corpus = first_line(error), self.corpus
        if not isinstance(error, OSError | ValueError | LookupError):
            if _of_library(error):  # the cause says what is wrong with the file
                cause = first_line(error.__cause__ or error)
                raise DataError(f"{corpus.file}: cannot be read ({cause}); fetch or write the file again") from error
            return
        said = text.replace(str(corpus.dataset), "").lower()  # a name can contain these words
        if "split" in said:
            raise ConfigError("corpus.split", corpus.split, text) from error
        if "config" in said:
            raise ConfigError("corpus.subset", corpus.subset, text) from error
        offline = " (HF_HUB_OFFLINE=1 is set)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
        remedy = f"no such folder, and not on the hub or in its cache: {text}{offline}"
        raise ConfigError("corpus.dataset", corpus.dataset, remedy) from error


def _of_library(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] in ("datasets", "pyarrow")


def _records(rows: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in zip(*rows.values(), strict=True):
        yield dict(zip(rows, values, strict=True))
