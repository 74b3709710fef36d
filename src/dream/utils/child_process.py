"""Starts a Python process that gets its work over a private connection, and ends with this process."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import IO, Any


def start_child(
    module: str, environment: Mapping[str, str], stdout: int | None = None, stderr: IO[Any] | None = None
) -> tuple[subprocess.Popen, Connection]:
    """Start `main(connection)` of a module in a process of its own. Ctrl-C in a terminal does not reach it.

    The process is not a fork: forks of a process with threads can hang. The system closes the connection
    when this process ends, however it ends; `main` must end then.

    Args:
        module: name of the module with `main`.
        environment: variables that are added to those of this process.
        stdout: as in `subprocess.Popen`.
        stderr: as in `subprocess.Popen`.

    Returns:
        The process, and the connection to it.
    """
    ours, theirs = socket.socketpair()
    read = f"from multiprocessing.connection import Connection; main(Connection({theirs.fileno()}))"
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with theirs:
        child = subprocess.Popen(
            [sys.executable, "-c", f"from {module} import main; {read}"], env=os.environ | path | dict(environment),
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True,
        )  # fmt: skip
    return child, Connection(ours.detach())
