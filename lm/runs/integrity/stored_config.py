"""Load the config of a run directory, and check the format of its records.

    run, run_id = stored_config.load_config(run_dir, records.read_facts(run_dir))

The run_id is a random number that the first attempt of a run stores in config.json and facts.json.
"""

from collections.abc import Mapping
from pathlib import Path

from lm.config import schema, validation
from lm.runs import json_files
from lm.runs.integrity import record_checksums


def load_config(path: Path, facts: Mapping, is_used: bool = True) -> tuple[schema.Run, str | None]:
    """Load config.json of a run directory. Return the config with its stored name, and the run_id.

    facts: content of facts.json. is_used: see validation.parse_stored_run. The run_id is None for a
    run of version 0.2. Raises ValueError that names a damaged file, or if facts.json belongs to
    another run.
    """
    file = path / "config.json"
    content = json_files.read_record(file)
    run_id = content.pop("run_id", None)
    content.pop(record_checksums.VERSION, None)
    if run_id and facts and facts.get("run_id") != run_id:
        raise ValueError(
            f"{path / 'facts.json'} belongs to another run than config.json: restore both files"
        )
    return validation.parse_stored_run(content, file, is_used), run_id


def check_format(path: Path, facts: Mapping) -> None:
    """Raise ValueError if version 0.1 or a later version with another format wrote the run.

    facts: content of facts.json.
    """
    version = facts.get(record_checksums.VERSION, facts.get("format"))
    oldest, newest = record_checksums.OLDEST_VERSION, record_checksums.FORMAT_VERSION
    if facts and version not in range(oldest, newest + 1):
        writer = facts.get("code.version", "0.1")
        raise ValueError(
            f"{path} was written by version {writer}, format_version={version}: this version reads"
            f" {oldest} to {newest}. Use that version, or start a run with a new name."
        )
