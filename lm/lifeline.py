"""Detect the death of another process through an open TCP connection.

Process 0 listens and the other processes connect to it. The kernel closes the connections of a
killed process. Process 0 notices at once and ends itself, which ends all others. A process that
ends normally sends a byte before. A machine that loses power closes no connection: JAX's heartbeats
detect it, later.
"""

import os
import selectors
import socket
import sys
import threading

from lm import guard

BYE = b"."
SECONDS = 60  # timeout of a connection


def listen() -> socket.socket:
    """Return a server at a free port of this machine."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def accept(server: socket.socket, n: int) -> list[socket.socket]:
    """Accept the connections of n other processes."""
    server.settimeout(SECONDS)
    return [server.accept()[0] for _ in range(n)]


def connect(host: str, port: int) -> list[socket.socket]:
    """Connect to process 0."""
    return [socket.create_connection((host, port), timeout=SECONDS)]


def hold(lines: list[socket.socket], name: str) -> None:
    """Watch connections in a thread. One that breaks ends this process with status LOST.

    name: of this process, for the message.
    """
    selector = selectors.DefaultSelector()
    for line in lines:
        line.settimeout(None)
        selector.register(line, selectors.EVENT_READ)

    def watch() -> None:
        while selector.get_map():
            for key, _ in selector.select():
                if _received(key.fileobj) != BYE:
                    _end(name)
                selector.unregister(key.fileobj)

    threading.Thread(target=watch, daemon=True, name="lifeline").start()


def say_goodbye(lines: list[socket.socket]) -> None:
    """Announce a normal end to the other processes."""
    for line in lines:
        try:
            line.sendall(BYE)
        except OSError:
            pass  # the other process has ended


def _received(line) -> bytes:
    try:
        return line.recv(1)
    except OSError:
        return b""


def _end(name: str) -> None:
    message = f"{name}: another one was lost, ended with status {guard.LOST}; see its messages."
    print(f"{message} Repeat the command to continue", file=sys.stderr, flush=True)
    os._exit(guard.LOST)
