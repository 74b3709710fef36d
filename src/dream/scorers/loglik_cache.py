"""A cache of log-likelihoods on disk. The scorer is frozen, so log p(y | d, x) never changes.

All scorers, stores, runs and processes share one SQLite file. Its write-ahead log keeps it intact if a process is
killed. Each row has a checksum, which is verified before use. Shapes: P (window, passage) pairs.
"""

import hashlib
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from dream.utils.errors import DamageError, require
from dream.utils.logging import get_logger

log = get_logger(__name__)

BUSY_SECONDS = 60.0  # longest wait for another process's transaction, which usually takes milliseconds
IDS, NATS = np.dtype("<i4"), np.dtype("<f4")
SCHEMA = """
CREATE TABLE IF NOT EXISTS scopes (id INTEGER PRIMARY KEY, used REAL NOT NULL);
CREATE TABLE IF NOT EXISTS windows (scope INTEGER, window INTEGER, passages BLOB NOT NULL, nats BLOB NOT NULL,
    checksum INTEGER NOT NULL, PRIMARY KEY (scope, window)) WITHOUT ROWID;
"""
# Errors that do not mean damage. All other errors mean that the file is damaged.
PASSING = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN,
           sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}  # fmt: skip

Row = tuple[int, np.ndarray, np.ndarray]  # window, ascending passage ids, nats
Result = TypeVar("Result")


class LoglikCache:
    """Call `open` with a scope (one scorer and store), then `find` and `add`.

    The cache never stops a run. If the file cannot be used, one message is logged, and the scorer computes every
    log-likelihood. A damaged file is logged and replaced by an empty one. If the file has reached its maximum size, the
    least recently used scopes are deleted. If only the current scope is left, nothing more is added.

    Args:
        folder: folder of the file `loglik-<number>.sqlite`.
        megabytes: maximum size of the file, in MB (10^6 bytes).

    Raises:
        ConfigError: `megabytes` is not positive.

    Example:
        >>> cache = LoglikCache(folder, megabytes=100)
        >>> cache.open("fingerprint of the scorer and the store")
        >>> cache.add(np.array([7]), np.array([3]), np.array([-1.5]))
        >>> cache.find(np.array([7, 7]), np.array([3, 4]))
        array([-1.5,  nan], dtype=float32)
    """

    def __init__(self, folder: Path, megabytes: int) -> None:
        require(megabytes > 0, "scorer.cache_megabytes", megabytes, "at least 1 MB")
        self.folder, self.most_bytes = folder, megabytes * 1_000_000
        self.connection: sqlite3.Connection | None = None
        self.is_full = False

    def open(self, scope: str) -> None:
        """Verify the rows of this scope and use them. `scope`: hash of everything that log-likelihoods depend on."""
        self.close()
        # The number is a hash of the name: no other scope gets it, even if other processes delete and add scopes.
        self.scope = int.from_bytes(hashlib.blake2b(scope.encode(), digest_size=7).digest())
        self.is_full = False
        self._try(self._open, None)

    def close(self) -> None:
        """Close the connection. Afterwards `find` finds nothing and `add` adds nothing."""
        if self.connection is not None:
            self.connection.close()
        self.connection = None

    def find(self, windows_P: np.ndarray, passages_P: np.ndarray) -> np.ndarray:
        """loglik_P float32 in nats; NaN for pairs that are not in the cache."""
        loglik_P = np.full(len(windows_P), np.nan, dtype=NATS)
        pairs_of = dict(_by_window(windows_P))
        rows: list[Row] = self._try(lambda: list(self._rows(list(pairs_of))), [])
        for window, ids, nats in rows:
            pairs = pairs_of[window]
            places = np.searchsorted(ids, passages_P[pairs]).clip(max=len(ids) - 1)
            known = ids[places] == passages_P[pairs]
            loglik_P[pairs[known]] = nats[places[known]]
        return loglik_P

    def add(self, windows_P: np.ndarray, passages_P: np.ndarray, loglik_P: np.ndarray) -> None:
        """Add pairs with their loglik_P in nats, except those that are not finite."""
        finite_P = np.isfinite(loglik_P)
        if finite_P.any() and not self.is_full:
            self._try(lambda: self._add(windows_P[finite_P], passages_P[finite_P], loglik_P[finite_P]), None)

    def _file(self) -> Path:
        """The file with the highest number.

        A damaged file is replaced by one with the next number, so processes that still use the old one cannot harm it.
        """
        numbers = [int(file.stem.split("-")[1]) for file in self.folder.glob("loglik-[0-9]*.sqlite")]
        return self.folder / f"loglik-{max(numbers, default=1)}.sqlite"

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self._file()
        self.connection = sqlite3.connect(self.file, timeout=BUSY_SECONDS, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.execute("PRAGMA synchronous=NORMAL")
        self.connection.executescript(SCHEMA)
        self._register()
        for _ in self._rows(None):
            pass

    def _register(self) -> None:
        """Write the scope's row. Called at every addition, because another process may have deleted the scope."""
        assert self.connection is not None
        self.connection.execute("INSERT OR REPLACE INTO scopes VALUES (?, ?)", (self.scope, time.time()))

    def _rows(self, windows: Sequence[int] | None) -> Iterator[Row]:
        """Verified rows of these windows, or of all windows. Raises DamageError if a checksum differs."""
        if self.connection is None:
            return
        query = "SELECT window, passages, nats, checksum FROM windows WHERE scope = ?"
        if windows is not None:  # integers need no escaping; SQLite limits the number of ? parameters
            query += f" AND window IN ({','.join(map(str, windows))})"
        for window, ids, nats, checksum in self.connection.execute(query, (self.scope,)):
            if checksum != _checksum(window, ids, nats):
                raise DamageError(f"{self.file}: damaged (a checksum has changed)")
            yield window, np.frombuffer(ids, IDS), np.frombuffer(nats, NATS)

    def _add(self, windows_P: np.ndarray, passages_P: np.ndarray, loglik_P: np.ndarray) -> None:
        if self.connection is None or not self._make_room():
            return
        self.connection.execute("BEGIN IMMEDIATE")  # no other process changes the rows between reading and writing
        try:
            self._register()
            pairs_of = dict(_by_window(windows_P))
            known = {window: (ids, nats) for window, ids, nats in self._rows(list(pairs_of))}
            for window, pairs in pairs_of.items():
                ids, nats = known.get(window, (np.empty(0, IDS), np.empty(0, NATS)))
                all_ids, first = np.unique(np.concatenate([ids, passages_P[pairs]]), return_index=True)
                all_nats = np.concatenate([nats, loglik_P[pairs]])[first]
                row = (all_ids.astype(IDS).tobytes(), all_nats.astype(NATS).tobytes())
                self.connection.execute("INSERT OR REPLACE INTO windows VALUES (?, ?, ?, ?, ?)",
                                        (self.scope, window, *row, _checksum(window, *row)))  # fmt: skip
            self.connection.execute("COMMIT")
        finally:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")

    def _make_room(self) -> bool:
        """Delete other scopes, the least recently used first, until there is space. Returns whether there is."""
        assert self.connection is not None
        while self._bytes() > self.most_bytes:
            oldest = "SELECT id FROM scopes WHERE id != ? ORDER BY used LIMIT 1"
            row = self.connection.execute(oldest, (self.scope,)).fetchone()
            if row is None:
                self.is_full = True
                log.warning(f"{self.file}: full, no more log-likelihoods are cached; raise scorer.cache_megabytes")
                return False
            self.connection.execute("DELETE FROM windows WHERE scope = ?", row)
            self.connection.execute("DELETE FROM scopes WHERE id = ?", row)
        return True

    def _bytes(self) -> int:
        assert self.connection is not None
        pages, free, size = (
            self.connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    def _try(self, work: Callable[[], Result], otherwise: Result) -> Result:
        """The result of `work`. If the file is damaged or cannot be used, log this and return `otherwise`."""
        try:
            return work()
        except DamageError as damage:
            self._start_new_file(str(damage))
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
            if code & 0xFF in PASSING and code != sqlite3.SQLITE_IOERR_SHORT_READ:
                log.warning(f"{self.file}: log-likelihoods are no longer cached ({error})")
                self.close()
            else:
                self._start_new_file(f"{self.file}: damaged ({error})")
        except OSError as error:
            log.warning(f"{self.folder}: log-likelihoods are not cached ({error.strerror})")
        return otherwise

    def _start_new_file(self, damage: str) -> None:
        log.warning(f"{damage}: its log-likelihoods are computed again")
        self.close()
        number = int(self.file.stem.split("-")[1])
        for suffix in ("", "-wal", "-shm"):
            self.file.with_name(self.file.name + suffix).unlink(missing_ok=True)
        (self.folder / f"loglik-{number + 1}.sqlite").touch()
        self._try(self._open, None)


def _by_window(windows_P: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (window, positions of its pairs)."""
    order_P = np.argsort(windows_P, kind="stable")
    windows, firsts = np.unique(windows_P[order_P], return_index=True)
    return zip(windows.tolist(), np.split(order_P, firsts)[1:], strict=True)


def _checksum(window: int, passages: bytes, nats: bytes) -> int:
    return zlib.crc32(nats, zlib.crc32(passages, window & 0xFFFFFFFF))
