"""dream-export: writes a finished run for other tools, and checks that they get the same vectors."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from dream.commands.app import command
from dream.utils.logging import get_logger
from dream.utils.runtime import fast_imports

if TYPE_CHECKING:
    from dream.export.base import Format

log = get_logger(__name__)

ABOUT = """
dream-export writes a finished run for other tools, opens the result again, and compares it with the run.

  dream-export to=sentence_transformers         the last run, for SentenceTransformer(FOLDER)
  dream-export to=onnx weights=int8 path=FOLDER run=RUN
  dream-export to=hub license=apache-2.0        with a model card; push=OWNER/NAME uploads it
  dream-export to=parquet                       the passages of the corpus with their vectors
"""
KEYS = (
    "run",
    "to",
    "path",
    "overwrite",
    "weights",
    "adapter",
    "license",
    "push",
    "private",
    "trust",
)


def export(cfg: DictConfig) -> None:
    """Write, check and rename the folder; upload it if `push` is set."""
    from dream.export.base import Checks, Job
    from dream.export.target import ABOUT, refuse_existing

    with fast_imports():
        from dream.runs.load import open_run
    from dream.utils.atomic_io import write_json
    from dream.utils.cached_folders import new_directory

    chosen = _format(cfg)
    folder = Path(cfg.run).resolve()
    to = cfg.to
    name = to if cfg.weights == "float32" else f"{to}_{cfg.weights}"
    name += "_adapter" if cfg.adapter == "kept" else ""
    path = Path(cfg.path).expanduser().absolute() if cfg.path else folder / "exports" / name
    refuse_existing(path, cfg.overwrite)
    log.info(f"DREAM: exporting {folder} to {to}")
    run = open_run(folder, trust=list(cfg.trust), data=cfg.paths.data)
    config: Any = OmegaConf.to_container(run.cfg)
    job = Job(run, config, folder, Path(cfg.paths.logs), Checks(**cfg.check), cfg.weights, cfg.adapter,
              cfg.license, cfg.push)  # fmt: skip
    with new_directory(path, replace=True, checksums=False) as unfinished:
        chosen.write(job, unfinished)
        found = chosen.check(job, unfinished)
        about = {"format": to, "weights": cfg.weights, "run": f"{folder.parent.name}/{folder.name}",
                 "encoder": run.encoder.identity(), "store": run.store.hash, "checked": found}  # fmt: skip
        write_json(unfinished / ABOUT, about)
    for key, value in found.items():
        log.info(f"  {key.replace('_', ' '):30} {f'{value:.6f}' if isinstance(value, float) else value}")
    log.info(f"Agrees with the run; written to {path}")
    if cfg.push:
        from dream.export.hub import push

        log.info(f"Uploaded: {push(path, cfg.push, cfg.private)}")


def _format(cfg: DictConfig) -> "Format":
    """The chosen format. Raises ConfigError if a key has a wrong value, or if a package is missing."""
    from dream.export.base import ADAPTERS
    from dream.export.formats import FORMATS
    from dream.utils.errors import require

    to = "???" if OmegaConf.is_missing(cfg, "to") else cfg.to
    require(to in FORMATS, "to", to, f"choose {', '.join(FORMATS)}")
    chosen = FORMATS[to]
    require(cfg.weights in ("float32", "int8"), "weights", cfg.weights, "choose float32 or int8")
    require(cfg.weights == "float32" or chosen.int8, "weights", cfg.weights, "only to=onnx and to=openvino have int8")
    require(cfg.adapter in ADAPTERS, "adapter", cfg.adapter, f"choose {' or '.join(ADAPTERS)}")
    remedy = "only to=sentence_transformers and to=hub can keep the adapter"
    require(cfg.adapter == "merged" or chosen.adapters, "adapter", cfg.adapter, remedy)
    require(cfg.push is None or to == "hub", "push", cfg.push, "only to=hub is uploaded")
    require(cfg.push is None or _names_repository(cfg.push), "push", cfg.push, "give OWNER/NAME")
    require(cfg.check.texts > 0, "check.texts", cfg.check.texts, "at least 1 passage")
    chosen.require_installed(to)
    return chosen


def _names_repository(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


main = command("export", ABOUT, KEYS)(export)

if __name__ == "__main__":
    main()
