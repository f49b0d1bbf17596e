"""Connections between processes: greetings, late processes, and the death of a process."""

import contextlib
import resource
import socket
import threading

import pytest

from lm.parallel import peer_connections

LIMIT = 20  # seconds after which a test fails


@pytest.fixture
def primary():
    """Yield a primary that watches two processes, its port and the event of a death."""
    connections, death = peer_connections.PeerConnections(), threading.Event()
    port = connections.listen(2)
    connections.watch(death.set)
    yield connections, port, death


def join(primary: peer_connections.PeerConnections, port: int) -> peer_connections.PeerConnections:
    """Return the connection of a process that has just joined."""
    process = peer_connections.PeerConnections(primary.token)
    process.connect("localhost", port)
    return process


def leave_without_token(port: int, text: bytes) -> None:
    """Connect, send a text other than the token, and wait until the primary closes."""
    with socket.create_connection(("localhost", port), timeout=LIMIT) as client:
        client.sendall(text)
        if not text:
            client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""


@pytest.mark.parametrize("text", [b"", b"GET / HTTP/1.1", b"." * 32])
def test_client_without_the_token_ends_no_run(primary, text):
    """The client takes no place: both processes join after it, and the death of one is seen."""
    connections, port, death = primary
    leave_without_token(port, text)
    first, second = join(connections, port), join(connections, port)
    assert connections._is_complete.wait(LIMIT) and not death.is_set()
    first.announce_end()
    second._sockets[0].close()
    assert death.wait(LIMIT)


def test_silent_client_does_not_delay_the_processes(primary):
    connections, port, death = primary
    with socket.create_connection(("localhost", port)) as silent:
        processes = [join(connections, port) for _ in range(2)]
        assert connections._is_complete.wait(LIMIT)
        silent.settimeout(LIMIT)
        with contextlib.suppress(ConnectionResetError):
            assert silent.recv(1) == b""  # closed once all processes have joined
    for process in processes:
        process.announce_end()
    assert not death.is_set()


def test_late_process_is_waited_for_without_a_time_limit(primary):
    """The primary trains meanwhile, and still watches the process that has joined."""
    connections, port, death = primary
    first = join(connections, port)
    assert not connections._is_complete.is_set() and not death.is_set()
    assert connections._server.gettimeout() is None
    late = join(connections, port)
    assert connections._is_complete.wait(LIMIT) and not death.is_set()
    late.announce_end()
    first._sockets[0].close()
    assert death.wait(LIMIT)


def test_end_of_the_primary_is_announced_to_all(primary):
    connections, port, _ = primary
    processes = [join(connections, port) for _ in range(2)]
    connections.announce_end()  # waits until both have joined
    for process in processes:
        process._sockets[0].settimeout(LIMIT)
        assert process._sockets[0].recv(1) == peer_connections.NORMAL_END


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [(1024, 4096, 2559), (1024, 2000, 2000), (8192, 8192, None), (1024, -1, 2559)],
)
def test_limit_of_open_files_allows_a_socket_per_process(soft, hard, expected, monkeypatch):
    limits = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.append(pair[0]))
    peer_connections._raise_file_limit(2047 + peer_connections.SPARE_FILES)
    assert limits == ([] if expected is None else [expected])
