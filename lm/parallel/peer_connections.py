"""TCP connections between the processes of a run, by which a process detects the death of another.

    peers = PeerConnections()
    port = peers.listen(n_others)               # in the primary, which sends port and token
    peers.connect(host, port)                   # in the other processes, with the token
    peers.watch(on_death)
    peers.announce_end()                        # before a normal end

Every other process has an open connection to the primary. The kernel closes the connection of a
killed process; the primary then ends at once, and its end ends all others. A process that ends
normally sends a byte before its connection closes. A machine that loses power closes no connection;
JAX's heartbeats detect its death later.

A process greets with the token of the run. The primary closes connections of other programs, such
as port scanners, and waits for late processes while it trains.
"""

import contextlib
import resource
import secrets
import selectors
import socket
import threading
from collections.abc import Callable

NORMAL_END = b"."  # sent by a process that ends normally
CONNECT_SECONDS = 120  # timeout of a connection to the primary
JOIN_SECONDS = 10  # a primary that ends waits for the connections of the other processes
SPARE_FILES = 512  # open files of a process in addition to its connections


class PeerConnections:
    """Open connections between the primary and the other processes.

    token: text that the other processes send first.
    """

    def __init__(self, token: str = ""):
        self.token = token or secrets.token_hex(16)
        self._server: socket.socket | None = None
        self._sockets: list[socket.socket] = []
        self._n_missing = 0
        self._is_complete = threading.Event()

    def listen(self, n_others: int) -> int:
        """Listen for n_others processes, and return the port. Call in the primary."""
        _raise_file_limit(n_others + SPARE_FILES)
        self._n_missing = n_others
        if socket.has_dualstack_ipv6():
            options = {"family": socket.AF_INET6, "dualstack_ipv6": True}
            self._server = socket.create_server(("", 0), backlog=n_others + 8, **options)
        else:
            self._server = socket.create_server(("", 0), backlog=n_others + 8)
        return self._server.getsockname()[1]

    def connect(self, host: str, port: int) -> None:
        """Connect to the primary. Raises OSError if it cannot be reached."""
        connection = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
        connection.sendall(self.token.encode())
        self._sockets.append(connection)
        self._is_complete.set()

    def watch(self, on_death: Callable[[], None]) -> None:
        """Call on_death() from a thread when a connection breaks."""
        threading.Thread(target=self._watch, args=(on_death,), daemon=True, name="peers").start()

    def announce_end(self) -> None:
        """Announce to the other processes that this process ends normally."""
        if self._server or self._sockets:
            self._is_complete.wait(JOIN_SECONDS)
        for connection in [*self._sockets]:
            with contextlib.suppress(OSError):  # the other process has ended
                connection.sendall(NORMAL_END)

    def _watch(self, on_death: Callable[[], None]) -> None:
        """Accept processes and watch their connections until all have ended normally."""
        selector = selectors.DefaultSelector()
        if self._server:
            selector.register(self._server, selectors.EVENT_READ)
        for connection in self._sockets:
            connection.settimeout(None)
            selector.register(connection, selectors.EVENT_READ)
        greetings: dict[socket.socket, bytes] = {}  # of connections that are not accepted yet
        while selector.get_map():
            for key, _ in selector.select():
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                if connection.fileno() < 0:
                    continue  # closed by an event before this one
                if connection is self._server:
                    self._accept(selector, greetings)
                elif connection in greetings:
                    self._read_greeting(connection, selector, greetings)
                else:
                    if _receive(connection, 1) != NORMAL_END:
                        on_death()
                    selector.unregister(connection)

    def _accept(self, selector: selectors.BaseSelector, greetings: dict) -> None:
        """Accept a connection, whose greeting is read later."""
        assert self._server
        with contextlib.suppress(OSError):  # the client has ended already
            connection = self._server.accept()[0]
            connection.setblocking(False)
            greetings[connection] = b""
            selector.register(connection, selectors.EVENT_READ)

    def _read_greeting(
        self, connection: socket.socket, selector: selectors.BaseSelector, greetings: dict
    ) -> None:
        """Read a part of a greeting. Close the connection if it differs from the token."""
        token = self.token.encode()
        received = _receive(connection, len(token) - len(greetings[connection]))
        greetings[connection] += received
        if received and token == greetings[connection]:
            del greetings[connection]
            connection.setblocking(True)
            self._sockets.append(connection)
            self._n_missing -= 1
        elif not received or not token.startswith(greetings[connection]):
            selector.unregister(connection)
            del greetings[connection]
            connection.close()
        if self._n_missing == 0 and self._server:
            for other in (self._server, *greetings):
                selector.unregister(other)
                other.close()
            greetings.clear()
            self._server = None
            self._is_complete.set()


def _receive(connection: socket.socket, n_bytes: int) -> bytes:
    """Return the next bytes of a connection; b"" if it is closed or broken."""
    try:
        return connection.recv(n_bytes)
    except OSError:
        return b""


def _raise_file_limit(n_files: int) -> None:
    """Raise the limit of open files of this process to n_files, or as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = n_files if hard == resource.RLIM_INFINITY else min(n_files, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
