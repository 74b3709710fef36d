"""The passages and their vectors in one Parquet file, which LanceDB, DuckDB, pandas and others read."""

from pathlib import Path
from typing import Any

import numpy as np

from dream.export.base import Format, Job
from dream.export.passages import about, check_passages, passage_rows
from dream.utils.atomic_io import write_bytes

FILE = "passages.parquet"
SNIPPET = """import numpy as np, pyarrow.parquet as parquet
from sentence_transformers import SentenceTransformer

table = parquet.read_table("passages.parquet")
vectors = np.stack(table["vector"].to_numpy())
model = SentenceTransformer("FOLDER")  # of dream-export to=sentence_transformers
best = (vectors @ model.encode_query("how do I read a file")).argsort()[::-1][:10]
print(table["document"].take(best))"""


class ParquetFormat(Format):
    """to=parquet"""

    packages = ("pyarrow",)
    extra = "parquet"

    def write(self, job: Job, folder: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        width = job.run.encoder.width
        text, number = pyarrow.string(), pyarrow.int64()
        vector = pyarrow.list_(pyarrow.float32(), width)
        schema = pyarrow.schema([("passage", number), ("document", text), ("title", text), ("text", text),
                                 ("start", number), ("end", number), ("vector", vector)])  # fmt: skip
        with pyarrow.parquet.ParquetWriter(folder / FILE, schema, compression="zstd") as writer:
            for rows, vectors_BD in passage_rows(job.run):
                columns = {name: [row[name] for row in rows] for name in schema.names[:-1]}
                flat = pyarrow.array(vectors_BD.reshape(-1))
                columns["vector"] = pyarrow.FixedSizeListArray.from_arrays(flat, width)
                writer.write_table(pyarrow.table(columns, schema=schema))
        files = f"`{FILE}` has a row for each passage; `start` and `end` are characters of the document."
        write_bytes(folder / "README.md", about(job, files, SNIPPET))

    def check(self, job: Job, folder: Path) -> dict[str, Any]:
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(folder / FILE, memory_map=True)

        def read(numbers: np.ndarray) -> tuple[list[dict[str, Any]], np.ndarray]:
            rows = table.take(numbers)
            return rows.drop_columns(["vector"]).to_pylist(), np.stack(rows["vector"].to_numpy())

        return check_passages(job, read)
