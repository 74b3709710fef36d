"""A FAISS index of the passages, and their rows as JSON lines."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from dream.export.base import Format, Job
from dream.export.passages import about, check_passages, passage_rows
from dream.utils.atomic_io import write_bytes

SNIPPET = """import faiss, json
from sentence_transformers import SentenceTransformer

index = faiss.read_index("index.faiss")
passages = [json.loads(line) for line in open("passages.jsonl", encoding="utf-8")]
model = SentenceTransformer("FOLDER")  # of dream-export to=sentence_transformers
similarity, numbers = index.search(model.encode_query(["how do I read a file"]), 10)
print([passages[number]["document"] for number in numbers[0]])"""


class FaissFormat(Format):
    """to=faiss"""

    def write(self, job: Job, folder: Path) -> None:
        import faiss

        index = faiss.IndexFlatIP(job.run.encoder.width)
        with (folder / "passages.jsonl").open("w", encoding="utf-8") as lines:
            for rows, vectors_BD in passage_rows(job.run):
                index.add(vectors_BD)
                lines.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        faiss.write_index(index, str(folder / "index.faiss"))
        files = "Row n of `index.faiss` (exact inner product) belongs to line n of `passages.jsonl`, from 0."
        write_bytes(folder / "README.md", about(job, files, SNIPPET))

    def check(self, job: Job, folder: Path) -> dict[str, Any]:
        import faiss

        index = faiss.read_index(str(folder / "index.faiss"))

        def read(numbers: np.ndarray) -> tuple[list[dict[str, Any]], np.ndarray]:
            wanted = set(numbers.tolist())
            with (folder / "passages.jsonl").open(encoding="utf-8") as lines:
                rows = [json.loads(line) for number, line in enumerate(lines) if number in wanted]
            return rows, np.stack([index.reconstruct(int(number)) for number in numbers])

        return check_passages(job, read)
