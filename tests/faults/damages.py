"""Files of data/ and logs/ that are cut short, changed, zeroed, deleted or unreadable; what the next command does.

Run: python -m tests.faults.damages --damages 200 --seed 0 --log damages.log
     python -m tests.faults.damages --damages 40 --kinds unreadable directory
"""

import argparse
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.faults.kills import Undisturbed
from tests.faults.world import World

KINDS = ("cut", "flip", "zero", "delete")
BLOCK = 512  # bytes that are zeroed
SEARCH = ("dream", "mode=hybrid")

# What is expected of the next command, by the first pattern that fits the file; new caches fall under the last one.
# named:   its line says the file; it is rebuilt, and the run ends bitwise equal
# refused: its line says the file, nothing is done; the run continues from another checkpoint and ends bitwise equal
# lossless: a bit of it may mean nothing; what is lost is computed again, and the run ends bitwise equal
# unread:  nothing reads or needs it
EXPECTED = {
    "data/loglik/**": "lossless",  # what it has lost costs forwards of the language model
    "data/inductor/**": "unread",  # compiled kernels are torch's own
    "**/events.out.tfevents*": "unread",  # curves
    "**/hparams.yaml": "unread",
    "**/*.tmp": "unread",
    "**/train.log": "unread",
    "**/tensorboard/*": "unread",
    "**/tensorboard/*/*/*": "unread",  # of the embedding projector
    "**/.snapshot-*.partial/index.*": "unread",  # whatever stands beside the shards is made again
    "**/.snapshot-*.partial/encoder.*": "unread",
    "**/.snapshot-*.partial/.tmp*": "unread",  # of safetensors, while it writes the weights
    "**/.snapshot-*.partial/manifest.json": "unread",
    "**/.snapshot-*.partial/checksums.json": "unread",
    "logs/*/*/checkpoints/last.ckpt": "refused",
    "**": "named",
}
UNKNOWN_WHEN_DELETED = ("best.ckpt", "*.training/last.ckpt")  # nothing says that there was one
READ_BY_A_FINISHED_RUN = ("logs/*/*/config.yaml", "logs/*/*/summary.json", "logs/*/*/encoder/*", "logs/*/*/index/*/*",
                          "logs/*/*/checkpoints/best.ckpt", "data/stores/*/*", "data/bm25/*/*")  # fmt: skip
READ_BY_SEARCH = ("logs/*/*/config.yaml", "logs/*/*/encoder/*", "logs/*/*/index/snapshot-00000010/*",
                  "data/stores/*/*", "data/bm25/*/*")  # fmt: skip


@dataclass
class Scene:
    """Copies of one world in several states, each of which is put in its place before it is damaged."""

    undisturbed: Undisturbed
    world: World
    states: dict[str, Path]

    @classmethod
    def prepare(cls, root: Path, undisturbed: Undisturbed) -> "Scene":
        world, states = World.new(root / "world"), {}

        def keep(state: str) -> None:
            states[state] = root / state
            shutil.copytree(world.root, states[state], symlinks=True)

        assert world.run(phase="pretraining", at_write="last.ckpt", signum=signal.SIGKILL) == -signal.SIGKILL
        keep("killed while pretraining")
        begun = world.latest()
        assert world.resume() == 0, world.output()[-3000:]
        shutil.rmtree(begun)  # it had no checkpoint yet, and nobody comes back to it
        keep("finished")
        world.remove(world.latest())
        world.stop(signal.SIGTERM)
        keep("stopped")
        again = {
            "phase": "refreshing",
            "at_write": "progress.json",
            "time": 5,
        }  # the second shard of the second refresh
        assert world.run("ckpt=auto", **again, signum=signal.SIGKILL) == -signal.SIGKILL
        keep("killed while refreshing")
        return cls(undisturbed, world, states)

    def put(self, state: str) -> None:
        shutil.rmtree(self.world.root)
        shutil.copytree(self.states[state], self.world.root, symlinks=True)

    def files(self, state: str) -> list[Path]:
        """Those that are worth damaging in this state, relative to the root: a run without a checkpoint is not resumed
        with, and a finished one reads little."""
        root = self.states[state]
        files = [file.relative_to(root) for file in sorted(root.rglob("*")) if file.is_file()]
        return [file for file in files if (root / file).stat().st_size and expectation(file) != "unread"
                and "latest" not in file.parts
                and (state != "finished" or fits(file, READ_BY_A_FINISHED_RUN))
                and (state != "killed while pretraining" or file.parts[0] == "data")]  # fmt: skip


def group_of(file: Path) -> str:
    """The kind of thing that the file is part of: data/stores, index, config.yaml."""
    return "/".join(file.parts[:2] if file.parts[0] == "data" else file.parts[3:4])


def fits(file: Path, patterns: tuple[str, ...]) -> bool:
    return any(file.match(pattern) for pattern in patterns)


def expectation(file: Path) -> str:
    return next(expected for pattern, expected in EXPECTED.items() if pattern == "**" or file.match(pattern)
                or (pattern.endswith("/**") and file.is_relative_to(pattern[:-3])))  # fmt: skip


def damage(file: Path, kind: str, draw: random.Random) -> str:
    """Damage the file, as a disk does: its times stay. Returns how."""
    times = file.stat()
    words = _damage(file, kind, draw)
    if file.exists():
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    return words


def _damage(file: Path, kind: str, draw: random.Random) -> str:
    content = bytearray(file.read_bytes())
    place = draw.randrange(len(content))
    if kind == "delete":
        file.unlink()
        return "deleted"
    if kind == "unreadable":
        file.chmod(0)
        return "made unreadable"
    if kind == "directory":
        file.unlink()
        file.mkdir()
        return "replaced by a directory"
    if kind == "cut":
        file.write_bytes(content[:place])
        return f"cut to {place} of {len(content)} bytes"
    if kind == "zero" and any(content[place : place + BLOCK]):
        block = content[place : place + BLOCK]
        content[place : place + BLOCK] = bytes(len(block))
        file.write_bytes(content)
        return f"{len(block)} bytes from {place} on zeroed"
    content[place] ^= 1 << (bit := draw.randrange(8))
    file.write_bytes(content)
    return f"bit {bit} of byte {place} flipped"


def names(output: str, file: Path) -> bool:
    return any(str(file) in line and any(word in line for word in ("damaged", "missing", "cannot be read", "denied"))
               for line in output.splitlines())  # fmt: skip


def damage_and_resume(scene: Scene, state: str, file: Path, kind: str, draw: random.Random) -> str:
    """Damage a file of this state, and do what a person does; returns what came of it. AssertionError: it is wrong."""
    scene.put(state)
    world, path = scene.world, scene.world.root / file
    what = f"{state}: {file}: {damage(path, kind, draw)}"
    if state == "finished" and search(world, file, path, kind, what):
        return f"{what}: named by search and rebuilt"
    powerless = kind == "unreadable"
    code, expected = world.run("ckpt=auto", powerless=powerless), expectation(file)
    output = world.output()
    assert "Traceback" not in output, f"{what}\n{output[-3000:]}"
    silent = expected == "lossless" or (kind in ("delete", "directory") and fits(file, UNKNOWN_WHEN_DELETED))
    assert silent or names(output, path), f"{what}: not named\n{output[-3000:]}"
    if code:
        assert expected == "refused" or kind in ("unreadable", "directory"), f"{what}\n{output[-3000:]}"
        fix(world, path, kind)
    assert world.result() == scene.undisturbed.result, f"{what}: the result differs"
    left = [path for path in world.forgotten() if not (code and path.startswith(str(file.parents[1])))]
    assert not left, f"{what}: {left}"  # but for what a run that was refused can continue with, once that is fixed
    return f"{what}: {'refused' if code else 'named' if not silent else 'unknown'}, ended bitwise equal"


def search(world: World, file: Path, path: Path, kind: str, what: str) -> bool:
    """A damaged part of a finished run is named before the run is searched. True where that made it again: BM25."""
    code = world.run(*SEARCH, f"run={world.latest()}", script="search", powerless=kind == "unreadable")
    output = world.output()
    assert "Traceback" not in output, f"{what}\n{output[-3000:]}"
    assert names(output, path) == fits(file, READ_BY_SEARCH), f"{what}: search\n{output[-3000:]}"
    rebuilt = "bm25" in file.parts and kind != "unreadable"
    assert not rebuilt or (code == 0 and path.is_file()), f"{what}\n{output[-3000:]}"
    return rebuilt


def fix(world: World, path: Path, kind: str) -> None:
    """What the message advises: make the file readable, remove the directory, or take another checkpoint."""
    more = "ckpt=auto"
    if kind == "unreadable":
        path.chmod(0o644)
    elif path.name == "last.ckpt":
        best = path.with_name("best.ckpt")
        more = f"ckpt={best}" if best.exists() else "ckpt=null"
    elif kind == "directory":
        path.rmdir()
    assert world.run(more) == 0, world.output()[-3000:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--damages", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--log", type=Path, default=Path("damages.log"))
    options = parser.parse_args()
    began, folders, kinds = time.perf_counter(), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as folder, options.log.open("w") as log:

        def say(line: str) -> None:
            print(line, flush=True)
            print(line, file=log, flush=True)

        scene = Scene.prepare(Path(folder), Undisturbed.run(Path(folder) / "undisturbed"))
        wrong = 0
        for number in range(1, options.damages + 1):
            draw = random.Random(f"{options.seed} {number}")
            state, kind = draw.choice(sorted(scene.states)), draw.choice(options.kinds)
            files = scene.files(state)
            group = draw.choice(sorted({group_of(file) for file in files}))  # some have many files, others one
            file = draw.choice([file for file in files if group_of(file) == group])
            try:
                say(f"damage {number}: {damage_and_resume(scene, state, file, kind, draw)}")
            except AssertionError as error:
                wrong += 1
                say(f"damage {number}: WRONG: {error}")
            folders[group] += 1
            kinds[kind] += 1
        say(f"  {dict(folders)}\n  {dict(kinds)}")
        say(f"{options.damages - wrong} of {options.damages} damages as expected ({time.perf_counter() - began:.0f} s)")


if __name__ == "__main__":
    main()
