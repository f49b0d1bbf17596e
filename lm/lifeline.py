"""A line between processes that breaks when one of them dies, however it dies.

Process 0 listens and the others connect. The kernel closes what a killed process held open: so
process 0 knows at once, ends itself, and by that all others. Who ends well says so before. Where a
machine loses its power nothing is closed: for that there are jax's heartbeats, which take longer.
"""

import os
import selectors
import socket
import sys
import threading

from lm import guard

BYE = b"."
SECONDS = 60  # to connect


def listen() -> socket.socket:
    """A server at a free port of this machine."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def accept(server: socket.socket, n: int) -> list[socket.socket]:
    """The lines of n others."""
    server.settimeout(SECONDS)
    return [server.accept()[0] for _ in range(n)]


def connect(host: str, port: int) -> list[socket.socket]:
    """The line to process 0."""
    return [socket.create_connection((host, port), timeout=SECONDS)]


def hold(lines: list[socket.socket], me: str) -> None:
    """From now on, a line that breaks ends this process with status LOST; me: who it is."""
    selector = selectors.DefaultSelector()
    for line in lines:
        line.settimeout(None)
        selector.register(line, selectors.EVENT_READ)

    def watch() -> None:
        while selector.get_map():
            for key, _ in selector.select():
                if _hears(key.fileobj) != BYE:
                    _end(me)
                selector.unregister(key.fileobj)

    threading.Thread(target=watch, daemon=True, name="lifeline").start()


def say_goodbye(lines: list[socket.socket]) -> None:
    """Before an ordinary end."""
    for line in lines:
        try:
            line.sendall(BYE)
        except OSError:
            pass  # that one went before


def _hears(line) -> bytes:
    try:
        return line.recv(1)
    except OSError:
        return b""


def _end(me: str) -> None:
    words = f"{me}: another one was lost, ended with status {guard.LOST}; see what that one said."
    print(f"{words} The same command goes on", file=sys.stderr, flush=True)
    os._exit(guard.LOST)
