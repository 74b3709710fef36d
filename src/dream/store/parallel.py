"""Runs tokenising and cutting in parallel with reading and writing: in a thread, or in other processes."""

import os
import queue
import subprocess
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Generic, TypeVar

from dream.utils.child_process import start_child
from dream.utils.errors import DreamError

Item = TypeVar("Item")
Result = TypeVar("Result")

PROCESS_BYTES = 16_000_000  # of text, for which another process pays: it starts in about half a second
WORKER = "dream.store.worker"
MOST_PROCESSES = 16  # one process reads and writes for all others, so more would wait for it


@contextmanager
def parallel_tokenizers() -> Iterator[None]:
    """Let fast tokenizers use all cores. This is safe, because no process forks while a store is built."""
    before = os.environ.get("TOKENIZERS_PARALLELISM", "false")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        os.environ["TOKENIZERS_PARALLELISM"] = before


def usable_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processes_for(text_bytes: int) -> int:
    """Number of processes that cut a corpus of this size; 1: only this one."""
    return max(1, min(usable_cores(), MOST_PROCESSES, text_bytes // PROCESS_BYTES))


@contextmanager
def in_parallel(
    work: Callable[[Item], Result], processes: int
) -> Iterator[Callable[[Iterable[Item]], Iterator[Result]]]:
    """A function that yields work(item) of many items, in their order, while the next items are worked on.

    Args:
        work: can be pickled, and depends only on the item.
        processes: number of processes that do the work; 1: a thread of this process does it. Tokenizers release
            Python's lock and then use all cores.
    """
    if processes == 1:
        with parallel_tokenizers(), _threads(1) as threads:
            yield lambda items: _in_order(threads, work, items, ahead=1)
    else:
        with _threads(processes) as threads, _Processes(work, processes) as pool:
            yield lambda items: _in_order(threads, pool, items, ahead=processes + 2)


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    threads = ThreadPoolExecutor(count)
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)


def _in_order(
    threads: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(threads.submit(work, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class _Processes(Generic[Item, Result]):
    """Processes that do the same work. A call gives an item to a free one, and waits for the result.

    A process ends when its connection closes, so also if this process is killed. Ctrl-C in a terminal does not reach
    it. It is a new program, not a fork: forks of a process with threads can hang.
    """

    def __init__(self, work: Callable[[Item], Result], count: int) -> None:
        self.work, self.count = work, count
        self.children: list[subprocess.Popen] = []
        self.free: queue.SimpleQueue[Connection] = queue.SimpleQueue()

    def __enter__(self) -> "_Processes[Item, Result]":
        try:
            for connection in [self._start() for _ in range(self.count)]:
                with _ended_early():
                    connection.send(self.work)
                self.free.put(connection)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def __call__(self, item: Item) -> Result:
        connection = self.free.get()
        try:
            with _ended_early():
                connection.send(item)
                return connection.recv()
        finally:
            self.free.put(connection)

    def _start(self) -> Connection:
        child, connection = start_child(WORKER, {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"})
        self.children.append(child)
        return connection

    def _stop(self) -> None:
        for child in self.children:
            child.kill()  # it holds nothing that could be lost
        for child in self.children:
            child.wait()


@contextmanager
def _ended_early() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:
        raise DreamError("a process that cuts documents has ended, perhaps because the memory is full; run again with "
                         "fewer cores, which are fewer processes: taskset -c 0 dream-train") from error  # fmt: skip
