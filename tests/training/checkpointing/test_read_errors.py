"""Errors of orbax and TensorStore: a failure of the storage, or damaged files."""

import http.server
import threading

import pytest
import tensorstore

from lm.training.checkpointing import read_errors

DETAILS = "Error reading local file: text [source locations='a.cc:12']"


def raised_from(cause: BaseException, is_explicit: bool = True) -> BaseException:
    """Return an error with a cause, as orbax raises it, or with the same error as its context."""
    error = RuntimeError("Encountered error while reading array index")
    error.__context__ = cause
    if is_explicit:
        error.__cause__ = cause
    return error


def variants(error: BaseException) -> list[BaseException]:
    """Return an error, and errors that it has caused."""
    group = BaseExceptionGroup("two readers failed", [ValueError("other"), error])
    return [error, raised_from(error), raised_from(error, False), raised_from(group)]


@pytest.mark.parametrize("code", read_errors.STATUS_CODES)
def test_status_code_decides_also_as_the_cause_of_an_error(code):
    is_failure = read_errors.STATUS_CODES[code]
    for prefix in ("", "Error restoring params: "):
        for error in variants(ValueError(f"{prefix}{code}: {DETAILS} DATA_LOSS: UNAVAILABLE: x")):
            failure = read_errors.find_failure(error)
            assert (failure is not None) == is_failure
            assert failure is None or code in str(failure)


@pytest.mark.parametrize(
    ("error", "is_failure", "number"),
    [
        (OSError(5, "Input/output error"), True, 5),
        (PermissionError(13, "Permission denied"), True, 13),
        (OSError(116, "Stale file handle"), True, 116),
        (OSError("no number"), True, None),
        (MemoryError(), True, None),
        (FileNotFoundError(2, "No such file"), False, 2),
        (NotADirectoryError(20, "Not a directory"), False, 20),
        (ValueError(f"UNKNOWN: {DETAILS[:-1]} os_error_code='5']"), True, 5),
        (ValueError(f"NOT_FOUND: {DETAILS[:-1]} os_error_code='2']"), False, 2),
        (ValueError("Error opening [os_error_code='24']"), True, 24),
        (ValueError("UNAVAILABLE/DEADLINE_EXCEEDED is no JSON"), False, None),  # a path
        (ValueError("NOT_UNAVAILABLE: text"), False, None),
        (ValueError("Unterminated string starting at: line 1"), False, None),
        (KeyError("key_metadata"), False, None),
    ],
)
def test_system_call_and_type_decide_without_a_status_code(error, is_failure, number):
    for variant in variants(error):
        assert (read_errors.find_failure(variant) is error) == is_failure
        assert read_errors.find_error_number(variant) == number


def test_errors_that_cause_each_other_end():
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first  # the interpreter permits it
    assert read_errors.find_failure(first) is None
    assert read_errors.find_error_number(first) is None


def test_tensorstore_has_status_codes_in_its_messages(tmp_path):
    """A bucket that fails is a failure, and a changed file is damaged."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(503)

        def log_message(self, *_):
            pass

    def read(spec: dict) -> ValueError:
        with pytest.raises(ValueError) as raised:
            tensorstore.KvStore.open(spec).result().read("name").result()
        return raised.value

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        retries = {"max_retries": 1, "initial_delay": "1ms", "max_delay": "1ms"}
        url = f"http://127.0.0.1:{server.server_port}/"
        context = {"http_request_retries": retries}
        error = read({"driver": "http", "base_url": url, "context": context})
        server.shutdown()
    assert read_errors.find_failure(raised_from(error)) is error

    (tmp_path / "manifest.ocdbt").write_bytes(b"UNAVAILABLE: text")
    error = read({"driver": "ocdbt", "base": f"file://{tmp_path}/"})
    assert read_errors.find_failure(raised_from(error)) is None
