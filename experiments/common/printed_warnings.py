"""Warnings of a command: each is one line, and is printed once.

A command restarts itself for its memory settings, and starts other processes that read the same
files. Their environment contains the checksums of the warnings that were printed before.
"""

import os
import zlib

PRINTED = "LM_PRINTED_WARNINGS"  # environment variable: checksums, separated by spaces


def format_warning(message, category, filename, lineno, line=None) -> str:
    """Return a warning as one line, without the place in the source, or "" if it was printed.

    The parameters are those of warnings.formatwarning.
    """
    text = f"warning: {' '.join(str(message).split())}\n"
    printed = os.environ.get(PRINTED, "").split()
    checksum = f"{zlib.crc32(text.encode()):08x}"
    if checksum in printed:
        return ""
    os.environ[PRINTED] = " ".join([*printed, checksum])
    return text
