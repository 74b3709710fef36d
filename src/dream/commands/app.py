"""Code shared by all commands: start Hydra, and show a user's mistake as one line."""

import difflib
import errno
import functools
import inspect
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dream.commands.config_help import choices, default_choices, help_text
from dream.commands.config_types import refuse_wrong_types
from dream.runs.claim import nothing_left
from dream.runs.paths import make_absolute
from dream.utils.errors import DreamError, user_error
from dream.utils.runtime import CONFIG_DIR
from dream.utils.signals import Interrupted, interruptible

HOME = re.compile(r"(?<![\w.~/])~(?=/|$)")  # not within a path
PLUGINS = {"optuna": "hydra-optuna-sweeper", "submitit_slurm": "hydra-submitit-launcher",
           "submitit_local": "hydra-submitit-launcher", "joblib": "hydra-joblib-launcher"}  # fmt: skip
OVERRIDE_KEY = re.compile(r"[+~]{0,2}[\w./@:-]+")
UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EISDIR, errno.ENOTDIR)


def command(
    config_name: str, about: str, keys: Sequence[str]
) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Turn `task(cfg)` into a console script. With HYDRA_FULL_ERROR=1, mistakes are shown with their traceback.

    Args:
        config_name: the command's config in conf/, without .yaml.
        about: first paragraph of --help.
        keys: keys that --help shows.
    """

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(task)
        def main() -> None:
            if {"-h", "--help"} & set(sys.argv[1:]):
                print(help_text(config_dirs(sys.argv), config_name, about, keys))
                return
            sys.argv[1:] = [new for argument in sys.argv[1:] for new in parseable(argument, config_name)]
            with _hydra_raises_errors() as wants_traceback, _mistakes_in_one_line(config_name, wants_traceback):
                refuse_sweep_of_ranks(sys.argv)
                checked = functools.partial(_checked, task, config_name, wants_traceback)
                _start(functools.update_wrapper(checked, task), config_name)  # Hydra takes the job's name from it

        return main

    return decorate


def _checked(task: Callable[[DictConfig], Any], config_name: str, wants_traceback: bool, cfg: DictConfig) -> Any:
    """Run the task. A mistake ends the program here, because Hydra would print all overrides again before the message.

    A job of a sweep raises the error: the launcher of the sweep must see it.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    raises = wants_traceback or HydraConfig.get().mode != RunMode.RUN
    run, logs = (Path(cfg.paths[name]).absolute() for name in ("run", "logs"))
    with _mistakes_in_one_line(config_name, raises), nothing_left(run, logs):
        refuse_wrong_types(cfg, config_name)
        make_absolute(cfg)
        return task(cfg)


@contextmanager
def _mistakes_in_one_line(config_name: str, raises: bool) -> Iterator[None]:
    """Show a user's mistake as one line and exit, unless errors are to be raised."""
    try:
        yield
    except Exception as error:
        message = None if raises else one_line(error, config_name)
        if message is None:
            raise
        sys.exit(f"{_new_line()}error: {message}")


@contextmanager
def mistakes_raised(config_name: str) -> Iterator[None]:
    """Raise a user's mistake as a DreamError of one line, for callers in Python."""
    try:
        yield
    except DreamError:
        raise
    except Exception as error:
        message = one_line(error, config_name)
        if message is None:
            raise
        raise (user_error(error) or DreamError(message)) from error


def _new_line() -> str:
    """A line break if a progress bar may stand in the current line."""
    return "\n" if "tqdm" in sys.modules else ""


def refuse_sweep_of_ranks(arguments: Sequence[str]) -> None:
    """Raise DreamError if a launcher has started several processes, which would each do the whole sweep."""
    processes = os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or "1"
    if {"-m", "--multirun"} & set(arguments[1:]) and processes != "1":
        raise DreamError(f"-m: the launcher has started {processes} processes, and each would do the whole sweep; "
                         "start the sweep without a launcher (trainer=ddp), or one job with each launcher")  # fmt: skip


def _start(task: Callable[[DictConfig], Any], config_name: str) -> None:
    """Run the task under Hydra. If a signal stops it, print how to resume."""
    import hydra

    try:
        with interruptible():
            hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)(task)()
    except Interrupted as stop:  # in a job of several processes, only rank 0 gets it
        print(f"{_new_line()}{stop.name}: {how_to_resume(stop, sys.argv)}", file=sys.stderr, flush=True)
        raise


@contextmanager
def _hydra_raises_errors() -> Iterator[bool]:
    """Make Hydra raise errors instead of printing its own text. Yields whether the user wants tracebacks."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield before == "1"
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


def parseable(argument: str, config_name: str) -> list[str]:
    """Rewrite a command-line argument so that Hydra can parse it.

    Values with blanks, brackets or `=` get quotes, `~` becomes the home folder, and `group=null` leaves a group out.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, separator, value = argument.partition("=")
    if not separator or not OVERRIDE_KEY.fullmatch(key):
        return [argument]
    groups = default_choices(CONFIG_DIR / f"{config_name}.yaml")
    if value == "null" and key in groups:
        return [] if groups[key] == "None" else [f"~{key}"]
    if key != "query":
        value = HOME.sub(str(Path.home()), value)
    parser = OverridesParser.create()
    for attempt in (f"{key}={value}", f"{key}={_quoted(value)}"):
        try:
            parser.parse_override(attempt)
        except HydraException:
            continue
        return [attempt]
    return [argument]


def _quoted(value: str) -> str:
    """The value in quotes. Hydra reads a backslash as an escape only before a quote or at the end."""
    escaped = re.sub(r"(\\*)'", lambda found: 2 * found[1] + "\\'", value)
    return "'{}'".format(re.sub(r"\\+$", lambda found: 2 * found[0], escaped))


def config_dirs(arguments: Sequence[str]) -> list[Path]:
    """The project's conf folder, and the folder of --config-dir if there is one."""
    given = [b for a, b in pairwise(arguments) if a in ("--config-dir", "-cd")]
    given += [argument.partition("=")[2] for argument in arguments if argument.startswith("--config-dir=")]
    return [CONFIG_DIR, *(Path(folder) for folder in given)]


def how_to_resume(stop: Interrupted, arguments: list[str]) -> str:
    """One line with the command that resumes."""
    script = Path(arguments[0]).name.removesuffix(".py")
    script = script if script.startswith("dream-") else f"python -m dream.commands.{script}"
    same = [*script.split(), *arguments[1:]]
    where = f"; the last checkpoint is {stop.checkpoint}" if stop.checkpoint else "; completed work is kept"
    if stop.sweep:
        multirun = ("-m", "--multirun", "hydra.sweep.dir=")  # argparse needs all overrides next to each other
        overrides = [argument for argument in arguments[1:] if not argument.startswith(multirun)]
        same = [*script.split(), "-m", *overrides, f"hydra.sweep.dir={stop.sweep}"]
    elif stop.checkpoint:
        overrides = [argument for argument in arguments[1:] if not argument.startswith("ckpt=")]
        same = [*script.split(), "ckpt=last", *overrides]
    return f"stopped{where}. Resume with: {shlex.join(same)}"


def one_line(error: BaseException, config_name: str) -> str | None:
    """The mistake in one line, or None if the error is not the user's."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if (mistake := user_error(error)) is not None:
        return str(mistake)
    for cause in _chain(error):
        if problem := _disk_problem(cause):
            return problem
    text = " ".join(str(error).split())
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _unknown_option(text) or _unknown_key(text, config_name) or _not_buildable(error) or text
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _disk_problem(error: BaseException) -> str | None:
    """The message for a disk that is full or cannot be used, which is not a bug of this program. None if it is fine."""
    full = "No space left on device" in str(error) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    where = getattr(error, "filename", None)
    if full:
        return (f"the disk is full{f' ({where})' if where else ''}: completed work is kept; free some space, "
                "then rerun the same command (a training with ckpt=last)")  # fmt: skip
    if isinstance(error, OSError) and error.errno in UNUSABLE and where:
        return f"{where}: {error.strerror}; fix it and rerun the same command"
    return None


def _unknown_option(text: str) -> str | None:
    match = re.search(r"(?:Could not find|Could not load) '([\w/]+)/([^/']+?)(?:\.yaml)?'", text)
    if not match:
        return None
    group, value = match.groups()
    if group.startswith("hydra/"):
        package = PLUGINS.get(value)
        return f"{group}={value}: not installed" + (f"; pip install {package}" if package else "")
    options = [name for folder in config_dirs(sys.argv) for name in choices(folder / group)]
    return f"{group}={value}: no such option; choose from {', '.join(sorted(set(options)))}"


def _unknown_key(text: str, config_name: str) -> str | None:
    match = re.search(r"Could not (?:override|delete|find) (?:value )?'?([\w.@/]+)'?", text)
    if not match:
        return None
    key = match.group(1).rstrip(".")
    if hint := _trainer_key(key):
        return hint
    close = difflib.get_close_matches(key, sorted(_known_keys(config_name)), n=1, cutoff=0.6)
    hint = f"did you mean {close[0]}?" if close else "see all keys with --cfg job"
    return f"{key}: no such key; {hint}"


def _trainer_key(key: str) -> str | None:
    """If Lightning's Trainer has a key that the config lacks: how to add it, or why it cannot be used."""
    section, _, name = key.partition(".")
    if section != "trainer":
        return None
    import lightning

    from dream.build import REFUSED

    if name in REFUSED:
        return f"{key}: {REFUSED[name]}"
    known = name in inspect.signature(lightning.Trainer.__init__).parameters
    return f"{key}: no key of this config, but Lightning's Trainer has it; add it with +{key}=VALUE" if known else None


def _known_keys(config_name: str) -> set[str]:
    """Every dotted key of the default config, and every group."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose(config_name)
    keys = {path.name for path in CONFIG_DIR.iterdir() if path.is_dir()}

    def walk(node: Any, prefix: str) -> None:
        for key, child in node.items() if isinstance(node, dict) else ():
            keys.add(f"{prefix}{key}")
            walk(child, f"{prefix}{key}.")

    walk(OmegaConf.to_container(cfg), "")
    return keys


def _not_buildable(error: BaseException) -> str | None:
    """A constructor refused its arguments: name the section of the config and the reason."""
    match = re.search(r"full_key: ([\w.]+)", str(error))
    if not match:
        return None
    section, reason = match.group(1), " ".join(str(error.__cause__ or error).split("full_key")[0].split())
    if unknown := re.search(r"unexpected keyword argument '(\w+)'", reason):
        key = f"{section}.{unknown.group(1)}"
        return f"{key}: this choice of {section} has no such key; remove it with ~{key}"
    return f"{section}: cannot be built from these values: {reason}"
