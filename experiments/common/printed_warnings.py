"""Warnings of a command: each is one line, and is printed once.

A command restarts itself for its memory settings. The environment of the restarted process contains
checksums of the printed warnings. Processes that it starts do not inherit them.
"""

import os
import zlib

VARIABLE = "LM_PRINTED_WARNINGS"  # environment variable: checksums, separated by spaces
PRINTED = os.environ.pop(VARIABLE, "").split()


def format_warning(message, category, filename, lineno, line=None) -> str:
    """Return a warning as one line, without the place in the source, or "" if it was printed.

    The parameters are those of warnings.formatwarning.
    """
    text = f"warning: {' '.join(str(message).split())}\n"
    checksum = f"{zlib.crc32(text.encode(errors='surrogateescape')):08x}"
    if checksum in PRINTED:
        return ""
    PRINTED.append(checksum)
    return text


def environment() -> dict[str, str]:
    """Return the environment variable of the restarted process."""
    return {VARIABLE: " ".join(PRINTED)}
