"""What is written is whole, and what is not whole is noticed. Run: pytest tests/utils/test_cached_folders.py"""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from dream.utils import cached_folders
from dream.utils.atomic_io import checksum, read_checked_json, try_lock, unlock, write_checked_json, write_json
from dream.utils.cached_folders import (
    discard,
    exclusive_workdir,
    new_directory,
    remove_leftovers,
    unfinished_directory,
    verify,
    verify_or_discard,
)
from dream.utils.errors import DamageError, DataError

BEGIN = """
import sys, time
from pathlib import Path
from dream.utils.cached_folders import {block}
with {block}(Path(sys.argv[1]) / "thing") as unfinished:
    (unfinished / "half").write_text("x")
    print("ready", flush=True)
    time.sleep(60)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def writer(tmp_path):
    """A living process in the middle of a block."""
    processes = []

    def start(block: str):
        process = subprocess.Popen(
            [sys.executable, "-c", BEGIN.format(block=block), tmp_path], stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_stay(writer, tmp_path):
    living, dead = writer("new_directory"), writer("new_directory")
    assert len(names(tmp_path)) == 2
    dead.kill()
    dead.wait()
    remove_leftovers(tmp_path)
    left = names(tmp_path)
    assert len(left) == 1
    with new_directory(tmp_path / "other") as unfinished:
        (unfinished / "a").write_text("b")
    assert names(tmp_path) == sorted([*left, "other"])
    living.send_signal(signal.SIGKILL)
    living.wait()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["other"]


def test_an_unfinished_directory_waits_for_its_next_writer(writer, tmp_path):
    living = writer("unfinished_directory")
    with pytest.raises(DataError, match="another process"), unfinished_directory(tmp_path / "thing"):
        pass
    living.kill()
    living.wait()
    with unfinished_directory(tmp_path / "thing") as unfinished:
        assert names(unfinished) == ["half"]
    assert names(tmp_path) == ["thing"]
    verify(tmp_path / "thing")


def test_a_known_checksum_is_not_computed_again(tmp_path):
    known: dict[str, str] = {}
    with unfinished_directory(tmp_path / "thing", known) as unfinished:
        for name in ("right", "wrong", "unknown"):
            (unfinished / name).write_text(name)
        known |= {"right": checksum(unfinished / "right"), "wrong": checksum(unfinished / "right")}
    with pytest.raises(DamageError, match="wrong: damaged"):
        verify(tmp_path / "thing")
    verify(tmp_path / "thing", ignore="wrong")


def test_one_process_at_a_time(writer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cached_folders, "WAIT_SECONDS", 0.05)
    living = writer("exclusive_workdir")
    began = time.monotonic()
    os.kill(os.getppid(), 0)
    subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -9 {living.pid}"])
    with exclusive_workdir(tmp_path / "thing") as folder:
        assert time.monotonic() - began > 0.25
        assert (folder / "half").exists()
    assert "waiting" in capsys.readouterr().out
    assert names(tmp_path) == []


def test_a_forked_child_does_not_keep_a_lock(tmp_path):
    lock = try_lock(tmp_path)
    child = os.fork()
    if not child:
        time.sleep(30)
        os._exit(0)
    try:
        time.sleep(0.1)
        unlock(lock)
        again = try_lock(tmp_path)
        assert again is not None
        unlock(again)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", [1])
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match=r"a\.json"):
        write_json(tmp_path / "a.json", [2])
    assert names(tmp_path) == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "[\n  1\n]\n"


def test_every_change_of_any_file_is_named(tmp_path):
    with new_directory(tmp_path / "whole") as unfinished:
        (unfinished / "sub").mkdir()
        for number, name in enumerate(["a.bin", "b.json", "sub/c.npy"]):
            (unfinished / name).write_bytes(random.Random(number).randbytes(50 * number + 1))
    folder, draw = tmp_path / "whole", random.Random(0)
    verify(folder)
    for _ in range(100):
        file = draw.choice([path for path in folder.rglob("*") if path.is_file()])
        content = file.read_bytes()
        place = draw.randrange(len(content))
        changed = bytearray(content)
        changed[place] ^= 1 << draw.randrange(8)
        file.write_bytes(changed if draw.random() < 0.5 else content[:place])
        with pytest.raises(DamageError, match=r"a\.bin|b\.json|c\.npy|checksums\.json"):
            verify(folder)
        file.write_bytes(content)
    verify(folder)


def test_a_damaged_cache_is_removed_and_named_once(tmp_path, capsys):
    with new_directory(tmp_path / "cache") as unfinished:
        (unfinished / "a").write_text("text")
    assert verify_or_discard(tmp_path / "cache")
    (tmp_path / "cache" / "a").write_text("test")
    assert not verify_or_discard(tmp_path / "cache")
    assert f"{tmp_path / 'cache' / 'a'}: damaged" in capsys.readouterr().out
    assert names(tmp_path) == []
    discard(tmp_path / "cache")


def test_a_folder_without_checksums_is_not_trusted(tmp_path, capsys):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "a").write_text("text")
    with pytest.raises(DamageError, match=r"checksums\.json: missing"):
        verify(tmp_path / "old")
    assert not verify_or_discard(tmp_path / "old")
    (tmp_path / "old").write_text("a file in the place of the folder")
    assert not verify_or_discard(tmp_path / "old")
    assert names(tmp_path) == []


def test_every_change_of_a_file_that_stands_alone_is_named(tmp_path):
    file, content, draw = tmp_path / "a.json", {"val/ndcg_at_10": 0.25, "store": "ä", "none": None}, random.Random(0)
    write_checked_json(file, content)
    whole = file.read_bytes()
    assert read_checked_json(file) == content
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << draw.randrange(8)
        for damaged in (changed, whole[:place]):
            file.write_bytes(damaged)
            with pytest.raises(DamageError, match=r"a\.json: damaged"):
                read_checked_json(file)
    file.unlink()
    with pytest.raises(DamageError, match=r"a\.json: missing"):
        read_checked_json(file)
