"""Large folders are verified once, and again when anything has changed. Run: pytest tests/utils/test_verified.py"""

import os
import shutil

import pytest

from dream.utils import cached_folders, verified
from dream.utils.cached_folders import new_directory, verify, verify_or_discard
from dream.utils.errors import DamageError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A sealed folder that counts as large, and is old enough to be trusted."""
    monkeypatch.setattr(verified, "LARGE_BYTES", 1)
    monkeypatch.setattr(verified, "SETTLED_SECONDS", -1)
    with new_directory(tmp_path / "store") as unfinished:
        (unfinished / "a.bin").write_bytes(b"some content")
        (unfinished / "inner").mkdir()
        (unfinished / "inner" / "b.bin").write_bytes(b"more")
    return tmp_path / "store"


@pytest.fixture
def read(monkeypatch):
    """Names of the files whose checksums were computed."""
    names = []
    checksum = cached_folders.checksum
    monkeypatch.setattr(cached_folders, "checksum", lambda file: (names.append(file.name), checksum(file))[1])
    return names


def test_the_second_verification_reads_no_file(folder, read):
    verify(folder)
    assert read == ["a.bin", "b.bin"]
    verify(folder)
    assert verify_or_discard(folder)
    assert len(read) == 2


def test_small_folders_are_always_read(folder, read, monkeypatch):
    monkeypatch.setattr(verified, "LARGE_BYTES", 10_000)
    verify(folder)
    verify(folder)
    assert len(read) == 4
    assert not (folder / verified.VERIFIED).exists()


def test_the_variable_reads_everything(folder, read, monkeypatch):
    verify(folder)
    monkeypatch.setenv("DREAM_VERIFY", "1")
    verify(folder)
    assert len(read) == 4


def damage(file):
    """Change a byte in place, so that size and inode stay."""
    with file.open("r+b") as content:
        content.write(b"S")


def test_a_changed_byte_is_found(folder):
    verify(folder)
    damage(folder / "a.bin")
    with pytest.raises(DamageError, match=r"a\.bin: damaged \(its checksum has changed\)"):
        verify(folder)
    assert not verify_or_discard(folder)
    assert not folder.exists()


def test_a_changed_byte_is_found_even_if_the_time_is_set_back(folder):
    verify(folder)
    before = (folder / "a.bin").stat()
    damage(folder / "a.bin")
    os.utime(folder / "a.bin", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (folder / "a.bin").stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(DamageError, match=r"a\.bin"):
        verify(folder)


@pytest.mark.parametrize("name", ["a.bin", "inner/b.bin", "checksums.json"])
def test_another_file_of_the_same_name_is_read(folder, read, name):
    verify(folder)
    shutil.copy(folder / name, folder / "copy")
    (folder / "copy").rename(folder / name)
    verify(folder)
    assert len(read) == 4


def test_missing_and_cut_files_are_found(folder):
    verify(folder)
    (folder / "a.bin").write_bytes(b"some")
    with pytest.raises(DamageError, match=r"a\.bin: damaged \(4 bytes instead of 12\)"):
        verify(folder)
    (folder / "a.bin").unlink()
    with pytest.raises(DamageError, match=r"a\.bin: missing"):
        verify(folder)


def test_a_copied_folder_and_a_damaged_record_are_not_trusted(folder, read, tmp_path):
    verify(folder)
    shutil.copytree(folder, tmp_path / "other")
    verify(tmp_path / "other")
    assert len(read) == 4
    damage(folder / verified.VERIFIED)
    verify(folder)
    assert len(read) == 6


def test_files_that_have_just_been_written_are_not_recorded(folder, read, monkeypatch):
    monkeypatch.setattr(verified, "SETTLED_SECONDS", 2)
    verify(folder)
    verify(folder)
    assert len(read) == 4


def test_a_part_is_not_recorded_as_the_whole(folder, read):
    damage(folder / "a.bin")
    verify(folder, ignore="a.bin")
    with pytest.raises(DamageError, match=r"a\.bin"):
        verify(folder)


def test_a_folder_that_cannot_be_written_is_verified_each_time(folder, read, monkeypatch):
    monkeypatch.setattr(verified, "write_checked_json", lambda *_: (_ for _ in ()).throw(PermissionError("read-only")))
    verify(folder)
    verify(folder)
    assert len(read) == 4
