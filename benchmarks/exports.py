"""Six runs, exported to sentence-transformers and loaded by a Python that has no DREAM: do they give the same vectors?

  python benchmarks/exports.py --corpus my.jsonl --bert MINILM --llm DECODER --python CLEAN/bin/python --out FOLDER

The runs are short: a static encoder, a BERT-like encoder and a decoder with LoRA, each in two variants: with and
without prefixes; the static encoder, which has no prefix, with and without random directions. `--python` needs
sentence-transformers 6. The lowest cosine of each run must be at least 0.99999.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import dream.utils.runtime  # noqa: F401  before torch and numpy, as in every command

# isort: split
import numpy as np

LOWEST = 0.99999
TEXTS = [
    "how do I read a file",
    "",
    "a",
    "Größe 漢字 naïve",
    "[SEP] <s> query: ",
    "many words " * 400,
    "RIVER Stone 42",
]
COMMON = ["objective=info_nce", "trainer.max_steps=6", "data.batch_size=16", "callbacks.candidate_panels=null",
          "callbacks.index_refresh.every_n_steps=0", "logger=null", "scorer=hf"]  # fmt: skip
PREFIXES = ['encoder.query_prefix="query: "', 'encoder.passage_prefix="passage: "']
READER = """
import importlib.util, sys
import numpy as np
from sentence_transformers import SentenceTransformer
assert importlib.util.find_spec("dream") is None, "DREAM is installed here"
model = SentenceTransformer(sys.argv[1], device="cpu", local_files_only=True)
texts = np.load(sys.argv[2])["texts"].tolist()
np.savez(sys.argv[3], query=model.encode_query(texts), passage=model.encode_document(texts))
"""


def variants(bert: str, llm: str) -> dict[str, list[str]]:
    """Overrides of each run."""
    hf = ["encoder=hf", "data.passage_tokens=64"]
    bert_run = [*hf, f"encoder.name={bert}", "optimizer.optimizer.lr=1e-4"]
    llm_run = [*hf, f"encoder.name={llm}", "encoder.pooling=last", "encoder.lora.rank=4", "optimizer.optimizer.lr=1e-3"]
    return {
        "static": ["encoder=static"],
        "static, no random directions": ["encoder=static", "encoder.random_width=0"],
        "BERT": [*bert_run, "encoder.query_prefix=''", "encoder.passage_prefix=''"],
        "BERT, prefixes": [*bert_run, *PREFIXES],
        "decoder with LoRA": llm_run,
        "decoder with LoRA, prefixes": [*llm_run, *PREFIXES],
    }


def lowest_cosine(run: Path, export: Path, python: str, out: Path) -> float:
    """Lowest cosine between the vectors of the run and those of its export, of queries and passages."""
    import dream

    retriever = dream.load(run, data=out / "data")
    texts = [*TEXTS, *(retriever.store.passage_text(n) for n in range(0, len(retriever.store.passages), 7))][:100]
    np.savez(out / "texts.npz", texts=np.array(texts))
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    files = [str(export), str(out / "texts.npz"), str(out / "read.npz")]
    subprocess.run([python, "-c", READER, *files], check=True, env=clean)
    read = np.load(out / "read.npz")
    own = {"query": retriever.encode_queries(texts), "passage": retriever.encode_documents(texts)}
    # The empty text has the zero vector in a static encoder, and is not defined in a decoder without a prefix.
    defined = {side: np.linalg.norm(own[side], axis=1) > 0.5 for side in own}
    if "LoRA" in run.name and "prefixes" not in run.name:
        defined = {side: rows & np.array([bool(text) for text in texts]) for side, rows in defined.items()}
    return min(float((own[side] * read[side]).sum(1)[defined[side]].min()) for side in own)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="a .jsonl file; a few hundred documents are enough")
    parser.add_argument("--bert", required=True, help="folder of an encoder like MiniLM")
    parser.add_argument("--llm", required=True, help="folder of a small decoder, also used as scorer")
    parser.add_argument("--python", required=True, help="Python of an environment without DREAM")
    parser.add_argument("--out", required=True, type=Path, help="folder for runs and exports")
    parser.add_argument("--only", nargs="*", help="names of runs; all by default")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for name, overrides in variants(options.bert, options.llm).items():
        if options.only and name not in options.only:
            continue
        started = time.perf_counter()
        run = options.out / "logs" / name.replace(", ", "_").replace(" ", "_")
        folders = [f"paths.data={options.out / 'data'}", f"paths.logs={options.out / 'logs'}"]
        train = [*COMMON, *folders, f"paths.run={run}", f"scorer.name={options.llm}", "experiment=own_corpus",
                 f"corpus.path={options.corpus}", *overrides]  # fmt: skip
        export = ["to=sentence_transformers", f"run={run}", *folders, "overwrite=true"]
        for command, arguments in (("train", train), ("export", export)):
            done = subprocess.run([sys.executable, "-m", f"dream.commands.{command}", *arguments], text=True,
                                  capture_output=True, check=False)  # fmt: skip
            if done.returncode:
                sys.exit(f"{name}: dream-{command} failed:\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}")
        cosine = lowest_cosine(run, run / "exports" / "sentence_transformers", options.python, options.out)
        failed += [name] if cosine < LOWEST else []
        print(f"{name:30} lowest cosine {cosine:.7f}   {time.perf_counter() - started:.0f} s", flush=True)
    if failed:
        sys.exit(f"below {LOWEST}: {', '.join(failed)}")


if __name__ == "__main__":
    main()
