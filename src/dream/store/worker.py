"""A process that does the work of `parallel.in_parallel`: `python -m dream.store.worker DESCRIPTOR`."""

import sys
from contextlib import suppress
from multiprocessing.connection import Connection


def main() -> None:
    """Receive the function, then answer each item with its result, until the connection is closed."""
    connection = Connection(int(sys.argv[1]))
    with suppress(EOFError, ConnectionError):
        work = connection.recv()
        while True:
            connection.send(work(connection.recv()))


if __name__ == "__main__":
    main()
