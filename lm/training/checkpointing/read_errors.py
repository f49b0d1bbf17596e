"""Errors of orbax: a disk, network or memory that fails now, or damaged files.

    if failure := read_errors.find_failure(error): ...     # the files may be intact
    number = read_errors.find_error_number(error)          # of a failed system call

TensorStore raises ValueError for all statuses of its storage. Only the message contains the status
code, before its text, and the number of a failed system call, after its text. Orbax raises some of
these errors again as the cause of a general exception.
"""

import re
from collections.abc import Iterator

MISSING_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
# Status codes of TensorStore and XLA: True for a failure that leaves the files intact. Buckets
# that fail or throttle give ABORTED after the last retry. A system call that fails with EIO gives
# UNKNOWN. Truncated, changed and deleted files give only codes with False.
STATUS_CODES = {
    "ABORTED": True,
    "ALREADY_EXISTS": False,
    "CANCELLED": True,
    "DATA_LOSS": False,
    "DEADLINE_EXCEEDED": True,
    "FAILED_PRECONDITION": False,
    "INTERNAL": True,
    "INVALID_ARGUMENT": False,
    "NOT_FOUND": False,
    "OUT_OF_RANGE": False,
    "PERMISSION_DENIED": True,
    "RESOURCE_EXHAUSTED": True,
    "UNAUTHENTICATED": True,
    "UNAVAILABLE": True,
    "UNIMPLEMENTED": False,
    "UNKNOWN": True,
}
STATUS = re.compile(rf"\b({'|'.join(STATUS_CODES)}): ")
SYSTEM_CALL = re.compile(r"\bos_error_code='(\d+)'")


def find_failure(error: BaseException) -> BaseException | None:
    """Return the failure of a disk, network or memory that caused an error.

    The result is None if the files are damaged or missing. The first error in the chain of causes
    that is an OSError or MemoryError, or whose message has a status code, decides.
    """
    for cause in _causes(error):
        number = _error_number(cause)
        status = STATUS.search(str(cause))
        if number is not None:
            is_failure = not isinstance(OSError(number, ""), MISSING_FILE)
        elif isinstance(cause, OSError | MemoryError):
            is_failure = not isinstance(cause, MISSING_FILE)
        elif status:
            is_failure = STATUS_CODES[status[1]]
        else:
            continue
        return cause if is_failure else None
    return None


def find_error_number(error: BaseException) -> int | None:
    """Return the number of the failed system call that caused an error, None if unknown."""
    numbers = (_error_number(cause) for cause in _causes(error))
    return next((number for number in numbers if number is not None), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes, the direct causes first. A cause occurs once."""
    pending, yielded_ids = [error], set()
    while pending:
        cause = pending.pop(0)
        if cause is None or id(cause) in yielded_ids:
            continue
        yielded_ids.add(id(cause))
        yield cause
        pending += cause.exceptions if isinstance(cause, BaseExceptionGroup) else []
        pending.append(
            cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
        )


def _error_number(error: BaseException) -> int | None:
    """Return the number of a system call of an OSError, or that in a message of TensorStore."""
    if isinstance(error, OSError):
        return error.errno
    code = SYSTEM_CALL.search(str(error))
    return int(code[1]) if code else None
