"""Commands that repeat a sweep, with its commits, its sweep file, its text and its start times."""

import shlex
from collections import Counter
from pathlib import PurePosixPath

from markupsafe import Markup

from lm.reports import html, summary
from lm.reports.plots import elements
from lm.reports.sections import setup_section
from lm.runs import records, short_names
from lm.runs.integrity import sweep_files

COMMITTED_FOLDER = "configs/"  # of the sweep files of this project
MAX_SOURCES = 12  # sources of text that the note names


def training_commands(sweep: summary.SweepSummary, report: str) -> Markup:
    """Return the commands and the notes on them. report: the command that writes the page."""
    command = sweep.facts.get("command")
    commits = Counter(
        row["code.commit"].rstrip("+") for row in sweep.rows if row.get("code.commit")
    )
    checkout = f"git checkout {commits.most_common(1)[0][0]}\n" if commits else ""
    seconds = sum(row["seconds"] for row in sweep.rows if records.is_finite(row.get("seconds")))
    duration = ""
    if seconds:
        duration = f" (training time, summed over the runs: {summary.format_duration(seconds)})"
    purpose = describe_repetition(sweep)
    purpose += f" These commands train the runs again{duration} and write this page, with the"
    purpose += " code of one commit."
    if command:
        folder = shlex.join(sweep_files.folder_arguments(sweep.path, sweep.facts))
        command = f"{command} {folder}".rstrip()
    else:
        purpose = "The records name no sweep file. This command writes the page again."
    commands = f"{checkout}{command}\n{report}" if command else f"{checkout}{report}"
    notes = [_commit_note(sweep, commits), _file_note(sweep), _text_note(sweep), _times_note(sweep)]
    paragraphs = [html.paragraph(note, "muted") for note in notes if note]
    return html.join_html([html.paragraph(purpose), html.code_block(commands), *paragraphs])


def describe_repetition(sweep: summary.SweepSummary) -> str:
    """Return a sentence about the files that a repetition needs besides the commit."""
    if not sweep.facts.get("command"):
        return "Not repeatable by a command: the records name no sweep file."
    needed = requirements(sweep)
    if not needed:
        return "Repeatable from the commit: no other files are needed."
    return (
        f"Repeatable only with {', '.join(needed[:-1])}{' and ' * (len(needed) > 1)}{needed[-1]}."
    )


def requirements(sweep: summary.SweepSummary) -> list[str]:
    """Return the files and changes that a repetition needs and that no commit contains."""
    needed = []
    file = str(sweep.facts.get("sweep") or "").partition(":")[0]
    if file.endswith(".py") and not file.startswith(COMMITTED_FOLDER):
        needed.append(f"the file {file}")
    sources = {source for row in sweep.rows for source in row.get("data.sources") or ()}
    files = [s for s in sources if s.partition(":")[0] in short_names.FILE_SOURCES]
    if files:
        count = "1 source" if len(files) == 1 else f"{len(files)} sources"
        needed.append(f"the text files of {count}")
    commits = [str(row["code.commit"]) for row in sweep.rows if row.get("code.commit")]
    if sweep.rows and not commits:
        needed.append("the code, whose commit the records do not name")
    n_modified = sum(commit.endswith("+") for commit in commits)
    if n_modified:
        n_runs = f"{n_modified} of {len(sweep.rows)} runs"
        needed.append(f"the uncommitted code of {n_runs}")
    n_commits = len({commit.rstrip("+") for commit in commits})
    if n_commits > 1:
        needed.append(f"all {n_commits} commits of the runs")
    return needed


def _commit_note(sweep: summary.SweepSummary, commits: Counter[str]) -> str:
    """Return sentences about several commits and about uncommitted changes, "" without any."""
    modified = Counter(
        row["code.commit"].rstrip("+")
        for row in sweep.rows
        if str(row.get("code.commit") or "").endswith("+")
    )
    sentences = []
    if len(commits) > 1:
        counts = _count_runs(commits)
        sentences.append(f"The runs were trained with several commits: {counts}.")
    if modified:
        counts = _count_runs(modified)
        sentences.append(
            f"At these commits, tracked files had changes that are not committed: {counts}."
        )
    return " ".join(sentences)


def _count_runs(commits: Counter[str]) -> str:
    """Return commits with their numbers of runs as text, the most frequent one first."""
    return ", ".join(
        f"{commit} ({elements.count_label(range(n))})" for commit, n in commits.most_common()
    )


def _file_note(sweep: summary.SweepSummary) -> str:
    """Return sentences about the sweep file, "" if the records name none."""
    name, _, arguments = str(sweep.facts.get("sweep") or "").partition(":")
    if not name.endswith(".py") or not sweep.facts.get("command"):
        return ""
    text = f"{name} is the file that defines the sweep"
    text += f", and {arguments} are the arguments of its function get_sweep." if arguments else "."
    if name.startswith(COMMITTED_FOLDER):
        return f"{text} Without it, config.json in the folder of each run has all settings."
    if "/" not in name:
        text += " It has no folder, so it was in the folder in which the command ran."
    show = f"git ls-files '*{PurePosixPath(name).name}'"
    return (
        f"{text} The records do not show if the commit contains this file: the command {show} lists"
        " it if it does. Without the file, config.json in the folder of each run has all settings."
    )


def _text_note(sweep: summary.SweepSummary) -> str:
    """Return sentences about the origin of the training text, "" if no run has started."""
    sources = sorted({source for row in sweep.rows for source in row.get("data.sources") or ()})
    if not sources:
        return ""
    more = f" and {len(sources) - MAX_SOURCES} more" if len(sources) > MAX_SOURCES else ""
    text = "The training text is not part of the records. Its sources: "
    text += f"{', '.join(sources[:MAX_SOURCES])}{more}."
    kinds = [kind for kind in short_names.FILE_SOURCES if any(_is_kind(s, kind) for s in sources)]
    if kinds:
        text += (
            f" The {' and '.join(kinds)} sources are files on the machine that trained the runs."
        )
    if any(source in setup_section.ORIGINS for source in sources):
        text += " Equal versions of Python and of its packages give equal text of code and docs."
    return f"{text} The hashes below identify the text: equal hashes are equal text."


def _is_kind(source: str, kind: str) -> bool:
    """Return True if a source has the prefix of a kind."""
    return source.startswith(f"{kind}:")


def _times_note(sweep: summary.SweepSummary) -> str:
    """Return the time of the last call of the sweep command, "" if it is unknown."""
    created = sweep.facts.get("created")
    starts = sorted(str(row["started"]) for row in sweep.rows if row.get("started"))
    first = f"The first run started at {summary.format_time(starts[0])}. " if starts else ""
    if not created:
        return first.strip()
    return f"{first}The sweep command was last called at {summary.format_time(created)}."
