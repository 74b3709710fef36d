"""Locks on file systems that lock only writable files, or nothing. Run: pytest tests/utils/test_locks.py"""

import errno
import fcntl
import os

import pytest

from dream.runs.claim import claimed
from dream.utils.atomic_io import try_lock, unlock
from dream.utils.cached_folders import new_directory, unfinished_directory, verify
from dream.utils.errors import DataError


@pytest.fixture
def network_disk(monkeypatch):
    """As NFS on Linux, see flock(2): an exclusive lock needs a descriptor that is open for writing."""
    flock = fcntl.flock

    def strict(descriptor, operation):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", strict)


def test_folders_and_files_are_locked_on_a_network_disk(tmp_path, network_disk):
    file = tmp_path / "file"
    file.touch()
    for path in (tmp_path, file):
        lock = try_lock(path)
        assert lock is not None
        assert try_lock(path) is None  # taken
        unlock(lock)
        unlock(try_lock(path))
    with claimed(tmp_path / "run", False) as folder, claimed(tmp_path / "run", False) as other:
        assert (folder.name, other.name) == ("run", "run_2")
    for directory in (new_directory, unfinished_directory):
        with directory(tmp_path / directory.__name__) as unfinished:
            (unfinished / "content").write_text("content")
        verify(tmp_path / directory.__name__)


def test_a_disk_without_locks_is_one_error_and_no_folder_more(tmp_path, monkeypatch):
    def refused(descriptor, operation):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(DataError, match=r"run: cannot be locked .*paths\.logs"), claimed(tmp_path / "run", False):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
