"""Load the config and the facts of a run directory, and check their format.

    run, run_id = stored_config.load_config(run_dir)

The run_id is a random number that the first attempt of a run stores in config.json and facts.json.
"""

from pathlib import Path

from lm.config import schema, validation
from lm.runs import filesystem, json_files
from lm.runs.integrity import record_checksums


def load_config(path: Path, is_used: bool = True) -> tuple[schema.Run, str | None]:
    """Load config.json of a run directory. Return the config with its stored name, and the run_id.

    is_used: see validation.parse_stored_run. The run_id is None for a run of version 0.2. Raises
    ValueError that names a damaged file, or if facts.json belongs to another run.
    """
    file = path / "config.json"
    content = json_files.read_record(file)
    run_id = content.pop("run_id", None)
    content.pop(record_checksums.VERSION, None)
    facts = load_facts(path) if run_id else {}
    if facts and facts.get("run_id") != run_id:
        raise ValueError(
            f"{path / 'facts.json'} belongs to another run than config.json: restore both files"
        )
    return validation.parse_stored_run(content, file, is_used), run_id


def load_facts(path: Path) -> dict:
    """Load facts.json as a flat dict. Return an empty dict before the first start."""
    file = filesystem.open_path(path) / "facts.json"
    return json_files.read_record(file) if file.exists() else {}


def check_format(path: Path) -> None:
    """Raise ValueError if version 0.1 or a later version with another format wrote the run."""
    facts = load_facts(path)
    version = facts.get(record_checksums.VERSION, facts.get("format"))
    oldest, newest = record_checksums.OLDEST_VERSION, record_checksums.FORMAT_VERSION
    if facts and version not in range(oldest, newest + 1):
        writer = facts.get("code.version", "0.1")
        raise ValueError(
            f"{path} was written by version {writer}, format_version={version}: this version reads"
            f" {oldest} to {newest}. Use that version, or start a run with a new name."
        )
