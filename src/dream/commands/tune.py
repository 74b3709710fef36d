"""dream-tune: finds good values of a few keys for a corpus, by many trainings."""

import math
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from dream.commands.app import command
from dream.utils.logging import get_logger
from dream.utils.runtime import fast_imports

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

log = get_logger(__name__)

ABOUT = """
dream-tune trains many times with different values of a few keys, and finds those that are best for your corpus: by the
labels of its dev split, otherwise by questions that the language model writes and that are not trained on.

  dream-tune experiment=own_corpus corpus=beir corpus.path=my_beir_folder trials=30
  dream-tune experiment=questions corpus=folder corpus.path=my_wiki         without labels
"""
KEYS = ("trials", "metric", "study", "keep")
OWN_KEYS = ("trials", "space", "metric", "study", "keep")  # not part of dream-train's config
NOT_COMPARED = (*OWN_KEYS, "paths", "logger")  # a study may continue with other values of these
KEPT = ("best", "all")
FORM = "each entry needs key, and factor, choices, or low and high"  # of `space`
SEED = 0  # of Optuna's sampler
BULKY = ("encoder", "untrained_encoder", "index", "checkpoints", "tensorboard")  # of a trial that is not the best


def tune(cfg: DictConfig) -> float:
    """Do the trials that are missing, then show the best one. Returns its value."""
    with fast_imports():
        from dream.build import check_config
    from dream.utils.errors import require, require_installed

    require_installed(["optuna"], "tune", "dream-tune", "")
    require(isinstance(cfg.trials, int) and cfg.trials > 0, "trials", cfg.trials, "at least 1 training")
    require(cfg.keep in KEPT, "keep", cfg.keep, f"choose {' or '.join(KEPT)}")
    require(
        cfg.ckpt not in ("last", "auto"), "ckpt", cfg.ckpt, "each training would continue another one; leave it out"
    )
    os.environ.pop("SLURM_RESTART_COUNT", None)  # otherwise a training of a restarted job would continue another one
    check_config(cfg)
    space = search_space(cfg)
    folder = Path(cfg.study).absolute()
    with _locked(folder):
        return _tune(cfg, space, folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Raise DataError if another process works on the study: it would do the running training again."""
    from dream.utils.atomic_io import try_lock, unlock
    from dream.utils.errors import DataError

    folder.mkdir(parents=True, exist_ok=True)
    if (lock := try_lock(folder)) is None:
        raise DataError(f"{folder}: another process is working on this study; wait for it, or name another folder with "
                        "study=FOLDER")  # fmt: skip
    try:
        yield
    finally:
        unlock(lock)


def _tune(cfg: DictConfig, space: list[dict[str, Any]], folder: Path) -> float:
    from dream.utils.errors import NumericalError
    from dream.utils.signals import Interrupted

    study = open_study(folder, cfg, space)
    done = len(_finished(study))
    log.info(f"DREAM: tuning {', '.join(entry['key'] for entry in space)} by {cfg.metric}: {cfg.trials} trainings, "
             f"{done} of them done\n  study  {folder}")  # fmt: skip

    def objective(trial: "Trial") -> float:
        try:
            return run_trial(trial, cfg, space, folder)
        except NumericalError as error:  # the study continues
            log.warning(f"trial {trial.number} failed: {error}")
            raise
        except Interrupted as stop:
            stop.checkpoint = None  # the same command continues the study; with ckpt=last it would be another one
            raise

    def report(study: "Study", trial: "FrozenTrial") -> None:
        finished = _finished(study)
        best = f"; best so far {study.best_value:.4f}" if finished else ""  # the first trials may have failed
        log.info(f"trial {len(finished)}/{cfg.trials}: {_values(trial.params)} → {_score(trial)}{best}")
        if finished and cfg.keep == "best":
            _discard_all_but(_run_of(study.best_trial, folder))

    if done < cfg.trials:
        study.optimize(objective, n_trials=cfg.trials - done, catch=(NumericalError,), callbacks=[report])
    _finish(study, folder, cfg)
    return study.best_value


def search_space(cfg: DictConfig) -> list[dict[str, Any]]:
    """The entries of `space` whose key is in the config, each with `low` and `high`, or `choices`.

    Raises:
        ConfigError: an entry is wrong, or no key is left.
    """
    from dream.utils.errors import require

    require(isinstance(cfg.space, ListConfig), "space", cfg.space, f"must be a list of entries; {FORM}")
    found, absent = [], object()  # the value in the config may be null
    for entry in OmegaConf.to_container(cfg.space, resolve=True):  # type: ignore[union-attr]
        require(isinstance(entry, dict) and isinstance(entry.get("key"), str), "space", entry, FORM)
        assert isinstance(entry, dict)
        value = OmegaConf.select(cfg, entry["key"], default=absent)
        if value is absent:
            log.info(f"{entry['key']} is not in this config, and is not tuned")
            continue
        found.append(_with_range(entry, value))
    require(bool(found), "space", cfg.space, "the config has none of these keys")
    return found


def _with_range(given: dict[Any, Any], value: Any) -> dict[Any, Any]:
    """The entry with `low` and `high`, or `choices`. `value`: that of its key in the config."""
    from dream.utils.errors import require

    entry = dict(given)
    if (factor := entry.pop("factor", None)) is not None:
        require(_is_number(factor) and factor > 1 and _is_number(value) and value > 0, "space", given,
                f"a factor above 1 of a number above 0 is needed; the config has {value}")  # fmt: skip
        low, high = value / factor, value * factor
        if isinstance(value, int):
            low, high = math.ceil(low), math.floor(high)
        entry |= {"low": low, "high": high, "log": True}
    require(("choices" in entry) != ({"low", "high"} <= entry.keys()), "space", given, FORM)
    if "choices" in entry:
        fits = isinstance(entry["choices"], list) and len(entry["choices"]) > 0
        require(fits, "space", given, "choices must be a list of one value or more")
        return entry
    low, high = entry["low"], entry["high"]
    require(_is_number(low) and _is_number(high), "space", given, "low and high must be numbers, such as 1 or 1.0e-5")
    require(low < high, "space", given, f"low must be below high; the range is {low} to {high}")
    require(low > 0 or not entry.get("log"), "space", given, "a logarithmic range needs low above 0; raise low, or "
            "remove log")  # fmt: skip
    return entry


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def open_study(folder: Path, cfg: DictConfig, space: list[dict[str, Any]]) -> "Study":
    """The study in this folder; a new one if there is none. Trials of an interrupted process are done again.

    Raises:
        ConfigError: the study was made with another config.
    """
    import optuna
    from optuna.trial import TrialState

    from dream.utils.atomic_io import fingerprint
    from dream.utils.errors import require

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # its warnings show a failed trial with a traceback
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "study.db"
    sampler = optuna.samplers.TPESampler(
        seed=SEED, multivariate=True, n_startup_trials=8, warn_independent_sampling=False
    )
    study = optuna.create_study(
        storage=f"sqlite:///{file}", study_name="tune", direction="maximize", sampler=sampler, load_if_exists=True
    )
    compared = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in NOT_COMPARED])
    made_of = fingerprint({"config": OmegaConf.to_container(compared), "space": space, "metric": cfg.metric})
    stored = study.user_attrs.get("made_of", made_of)
    require(stored == made_of, "study", folder, "this study has another config, space or metric; name another folder, "
            "or repeat its command")  # fmt: skip
    study.set_user_attr("made_of", made_of)
    if study.trials:  # with the first seed, it would repeat the first suggestions
        sampler.reseed_rng()
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return study


def run_trial(trial: "Trial", cfg: DictConfig, space: list[dict[str, Any]], folder: Path) -> float:
    """Train with the values that the sampler suggests. Returns the metric."""
    from hydra.utils import instantiate

    from dream.commands.train import train
    from dream.runs.layout import SUMMARY
    from dream.utils.atomic_io import read_checked_json
    from dream.utils.errors import require

    config = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in OWN_KEYS])
    with open_dict(config):
        config.paths.run = str(folder / f"trial-{trial.number:03d}")
        config.evaluation.report_split = config.evaluation.dev_split  # never the test labels
        for entry in space:
            OmegaConf.update(config, entry["key"], _suggest(trial, entry))
    train(config)
    run = Path(config.paths.run)  # with another name, if the folder had a run of an older study
    if trial.number == 0 and cfg.evaluation.dev_split not in instantiate(cfg.corpus).splits():
        log.warning("no labelled dev split: the trials are compared by questions of the language model, which can "
                    "prefer other values than labels would; even 100 labelled queries are better")  # fmt: skip
    summary = read_checked_json(run / SUMMARY)
    remedy = ("not in summary.json: the corpus needs labels of evaluation.dev_split, or the language model must write "
              "held-out questions (experiment=questions, or data.questions)")  # fmt: skip
    require(cfg.metric in summary, "metric", cfg.metric, remedy)
    trial.set_user_attr("folder", run.name)
    return float(summary[cfg.metric])


def _suggest(trial: "Trial", entry: dict[str, Any]) -> Any:
    key = entry["key"]
    if "choices" in entry:
        return trial.suggest_categorical(key, entry["choices"])
    low, high, is_log = entry["low"], entry["high"], entry.get("log", False)
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(key, low, high, log=is_log)
    return float(f"{trial.suggest_float(key, low, high, log=is_log):.6g}")


def _run_of(trial: "FrozenTrial", folder: Path) -> Path:
    """The folder of a trial's run."""
    return folder / trial.user_attrs["folder"]


def _finished(study: "Study") -> list["FrozenTrial"]:
    from optuna.trial import TrialState

    return [trial for trial in study.trials if trial.state == TrialState.COMPLETE]


def _discard_all_but(best: Path) -> None:
    """Delete what is large in the folders of all trials except the best one. Their summaries are kept."""
    from dream.utils.cached_folders import discard

    for run in best.parent.glob("trial-*"):
        if run != best:
            for part in BULKY:
                if (run / part).exists():
                    discard(run / part)


def _finish(study: "Study", folder: Path, cfg: DictConfig) -> None:
    """Show the best trials and the command that repeats the best one; write the plots; point logs/latest at the best.

    Raises:
        ConfigError: all trials have failed.
    """
    from dream.evaluation.tuning_plots import write_plots
    from dream.utils.atomic_io import point_latest, write_json
    from dream.utils.errors import require

    trials = sorted(_finished(study), key=lambda trial: -(trial.value or 0))
    require(bool(trials), "space", cfg.space, "every training had inf or nan; give a space with lower learning rates, "
            "such as {key: optimizer.optimizer.lr, low: 1e-5, high: 1e-4, log: true}, and another folder with "
            "study=FOLDER")  # fmt: skip
    # It names the last trial, which may have no encoder any more: dream-search would then say that it did not finish.
    point_latest(Path(cfg.paths.logs) / "latest", _run_of(study.best_trial, folder))
    table = [{"trial": trial.number, "value": trial.value, "values": trial.params} for trial in trials]
    write_json(folder / "trials.json", table)
    plots = write_plots(study, folder, cfg.metric)
    lines = [f"  {_score(trial)}  trial {trial.number:3}  {_values(trial.params)}" for trial in trials[:5]]
    best = " ".join(shlex.quote(f"{key}={_shown(value)}") for key, value in study.best_params.items())
    log.info("\n".join([f"\nBest of {len(trials)} trainings by {cfg.metric}:", *lines,
                        f"\nTrain with these values: add them to your dream-train command\n  {best}",
                        f"Written to {folder}: study.db, trials.json, {', '.join(plots)}"]))  # fmt: skip


def _score(trial: "FrozenTrial") -> str:
    return "failed" if trial.value is None else f"{trial.value:.4f}"


def _values(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{key.rpartition('.')[2] if key.count('.') < 2 else key}={_shown(value)}" for key, value in values.items()
    )


def _shown(value: Any) -> str:
    """The value as it is written on the command line."""
    if value is None:
        return "null"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


main = command("tune", ABOUT, KEYS)(tune)

if __name__ == "__main__":
    main()
