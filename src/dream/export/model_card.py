"""The model card of a run: how it was trained, its figures with intervals, and how it is used."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

import dream
from dream.evaluation.metrics import TITLES
from dream.evaluation.results import HEADLINE
from dream.export.base import Job
from dream.runs.layout import BELONGS_TO, ENCODER, SUMMARY
from dream.utils.atomic_io import read_checked_json
from dream.utils.errors import DamageError

# ISO codes of Snowball's languages, which the hub's `language` field wants.
LANGUAGES = {"arabic": "ar", "danish": "da", "dutch": "nl", "english": "en", "finnish": "fi", "french": "fr",
             "german": "de", "italian": "it", "norwegian": "no", "portuguese": "pt", "russian": "ru", "spanish": "es",
             "swedish": "sv", "turkish": "tr"}  # fmt: skip
SYSTEMS = {"bm25": "BM25", "untrained": "this encoder before training", "run": "**this model**",
           "trained": "**this model**", "hybrid": "this model and BM25 (weighted sum)"}  # fmt: skip
TEXT = """# {title}

A dense retriever for texts like those of the corpus `{corpus}`: it maps queries and passages to vectors of {width}
dimensions, whose cosine is high if the passage answers the query.

{origin}

## Usage

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{place}")
queries = model.encode_query(["how do I read a file"])
passages = model.encode_document(["Opens the file and returns its lines."])
print(model.similarity(queries, passages))
```

Use `encode_query` and `encode_document`: they add the prompts{lengths}.

## Training

| | |
|---|---|
{facts}

## Evaluation

{figures}

## Licence

{licence}
"""
WITHOUT_LABELS = """It was trained without labels by DREAM, version {version}: a passage counts as relevant to a
context if a frozen language model predicts the true continuation better with it."""
WITH_LABELS = "It was trained on labelled pairs of query and passage by DREAM, version {version}."
OWN_PAIRS = (
    """It was trained without labels by DREAM, version {version}: a context and its own continuation form a pair."""
)


def model_card(job: Job) -> ModelCard:
    """The card, with the metadata that the hub reads."""
    config, summary = job.config, _summary(job)
    name, corpus = f"{config['name']}-{config['encoder']['_target_'].split('.')[-2]}", config["corpus"]["name"]
    table, results = _figures(job, summary)
    base = config["encoder"].get("name")
    is_hub_name = base is not None and not Path(base).is_absolute()
    data = ModelCardData(
        license=job.licence or "unknown",
        language=LANGUAGES.get(config["corpus"].get("language") or ""),
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "sentence-similarity", "feature-extraction", "dense-retrieval", "dream"],
        base_model=base if is_hub_name else None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    text = TEXT.format(title=name, place=job.repository or "PATH_OF_THIS_FOLDER", corpus=corpus,
                       width=job.run.encoder.width, origin=_origin(config), lengths=_lengths(job),
                       facts=_facts(job, summary), figures=table,
                       licence=job.licence or "The licence of this model has not been stated.")  # fmt: skip
    return ModelCard(f"---\n{data}\n---\n\n{text}")


def _summary(job: Job) -> dict[str, Any]:
    try:
        return read_checked_json(job.folder / SUMMARY)
    except DamageError:
        return {}


def _origin(config: dict[str, Any]) -> str:
    kind, objective = (config[group]["_target_"].split(".")[-2] for group in ("data", "objective"))
    text = WITH_LABELS if kind.startswith("labelled") else OWN_PAIRS if objective == "info_nce" else WITHOUT_LABELS
    return text.format(version=dream.__version__)


def _lengths(job: Job) -> str:
    encoder = job.encoder
    prefixes = {side: getattr(encoder, f"{side}_prefix", "") for side in ("query", "passage")}
    added = " and ".join(f"{text!r} before a {side}" for side, text in prefixes.items() if text)
    return f" ({added or 'here none'}), and texts are cut to {encoder.max_tokens} tokens"


def _facts(job: Job, summary: dict[str, Any]) -> str:
    config, counts = job.config, job.run.store.manifest["counts"]
    scorer, rank = config["scorer"], (config["encoder"].get("lora") or {}).get("rank")
    facts = {
        "corpus": f"{config['corpus']['name']}: {counts['documents']:,} documents, "
        f"{len(job.run.store.passages):,} passages (store {job.run.store.hash})",
        "encoder": _kind(config["encoder"]) + (f", LoRA of rank {rank}, {job.adapter}" if rank else ""),
        "objective": f"`{config['objective']['_target_'].split('.')[-2]}`",
        "language model that scored passages": _kind(scorer) if summary.get("pairs_asked") else "none",
        "training": f"{summary['steps']:,} steps of {config['data']['batch_size']} windows" if summary else None,
        "pairs scored": f"{summary['pairs_asked']:,}" if summary.get("pairs_asked") else None,
        "seed": config["seed"],
        "time since the last start": f"{summary['wall_seconds']:,.0f} s" if summary else None,
        "versions": ", ".join(f"{key[8:]} {value}" for key, value in summary.items() if key.startswith("version/")),
    }
    return "\n".join(f"| {key} | {value} |" for key, value in facts.items() if value not in (None, ""))


def _kind(section: dict[str, Any]) -> str:
    """Kind and name of an encoder or scorer. Of a local folder, only the last part of its path."""
    kind, name = section["_target_"].split(".")[-2], section.get("name") or section.get("path")
    shown = Path(name).name if name and Path(name).is_absolute() else name
    return f"`{kind}`, {shown}" if shown else f"`{kind}`"


def _figures(job: Job, summary: dict[str, Any]) -> tuple[str, list[EvalResult]]:
    """(Markdown, results for the hub): the newest dream-evaluate of this run, else the table at the end of the run."""
    corpus = job.config["corpus"]["name"]
    if (found := newest_evaluation(job.folder, job.logs)) is not None:
        systems = found["systems"]
        cells = {SYSTEMS.get(row, row): {metric: _with_interval(values[metric]) for metric in HEADLINE}
                 for row, values in systems.items()}  # fmt: skip
        share, runs = found["statistics"]["confidence"], systems.get("run", {}).get("runs", 1)
        means = f" Means over {runs} runs with different seeds, of which this model is one." if runs > 1 else ""
        title = (f"{found['queries']:,} queries of split `{found['split']}` of corpus `{found['corpus']}`, "
                 f"{found['documents']:,} documents; {share:.0%} bootstrap intervals.{means}")  # fmt: skip
        own = {metric: systems["run"][metric]["mean"] for metric in HEADLINE if "run" in systems}
        return _table(title, cells), _results(own, found["corpus"], found["split"])
    split = job.config["evaluation"]["report_split"]
    rows = [system for system in ("bm25", "untrained", "trained", "hybrid") if f"{system}/{HEADLINE[0]}" in summary]
    if not rows:
        return "The corpus had no labels, so the model was not evaluated.", []
    cells = {SYSTEMS[row]: {metric: f"{summary[f'{row}/{metric}']:.4f}" for metric in HEADLINE} for row in rows}
    title = f"Split `{split}` of corpus `{corpus}`, all documents; without intervals, which dream-evaluate computes."
    own = {metric: summary[f"trained/{metric}"] for metric in HEADLINE if "trained" in rows}
    return _table(title, cells), _results(own, corpus, split)


def newest_evaluation(run: Path, logs: Path) -> dict[str, Any] | None:
    """results.json of the newest evaluation of this run, if possible of this run only. None if there is none."""
    found = []
    for file in logs.glob("*/*/results.json"):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            saved = (run / ENCODER / BELONGS_TO).stat().st_mtime  # after the evaluation, if the run was trained further
            is_current = str(run) in content["runs"] and file.stat().st_mtime >= saved
            if is_current and "split" in content:
                found.append((-len(content["runs"]), file.stat().st_mtime, str(file), content))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not a file of dream-evaluate
    return max(found)[-1] if found else None


def _with_interval(value: dict[str, Any]) -> str:
    return "{:.4f} [{:.4f}, {:.4f}]".format(value["mean"], *value["interval"])


def _table(title: str, cells: dict[str, dict[str, str]]) -> str:
    lines = [f"| | {' | '.join(TITLES[metric] for metric in HEADLINE)} |", f"|---|{'---|' * len(HEADLINE)}"]
    lines += [f"| {system} | {' | '.join(values.values())} |" for system, values in cells.items()]
    return "\n".join([title, "", *lines])


def _results(own: dict[str, float], corpus: str, split: str) -> list[EvalResult]:
    return [EvalResult(task_type="information-retrieval", dataset_type=corpus, dataset_name=corpus, dataset_split=split,
                       metric_type=metric, metric_name=TITLES[metric], metric_value=round(value, 6))
            for metric, value in own.items()]  # fmt: skip
