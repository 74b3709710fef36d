"""A process that does the work of `parallel.in_parallel`."""

from contextlib import suppress
from multiprocessing.connection import Connection


def main(connection: Connection) -> None:
    """Receive the function, then answer each item with its result, until the connection is closed."""
    with suppress(EOFError, ConnectionError):
        work = connection.recv()
        while True:
            connection.send(work(connection.recv()))
