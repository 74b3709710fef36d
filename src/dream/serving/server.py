"""Listens on 127.0.0.1 only, so that no other machine can search."""

import socket
from typing import Any

from dream.utils.errors import ConfigError

HOST = "127.0.0.1"


def bind(port: int) -> socket.socket:
    """A socket on this port of 127.0.0.1; 0: any free port. Raises ConfigError if the port is in use."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise ConfigError("port", port, f"{error.strerror}; choose another port, or 0 for any free one") from error
    return listener


def answer_requests(app: Any, listener: socket.socket) -> None:
    """Answer requests until a signal ends the process."""
    import uvicorn

    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
