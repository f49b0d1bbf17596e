"""Short names of sources and tasks."""

from lm.runs import short_names


def test_equal_file_names_get_folders():
    sources = ["text:/a/x/wiki.txt", "text:/b/x/wiki.txt", "jsonl:books/*.jsonl.gz?field=body"]
    shortened = short_names.shorten_sources([*sources, "code", "tasks:copy+sort"])
    expected = ["a/x/wiki", "b/x/wiki", "books", "code", "tasks:copy+sort"]
    assert list(shortened.values()) == expected


def test_short_task_names_have_no_folder_and_no_n():
    assert short_names.shorten_task("file:/my/tasks/piqa?shots=2&n=100") == "piqa?shots=2"
    assert short_names.shorten_task("copy?length=4&n=200") == "copy?length=4"


def test_names_that_cannot_differ_are_full_names():
    sources = ["text:a.txt", "jsonl:a.jsonl"]
    assert list(short_names.shorten_sources(sources).values()) == sources
    assert short_names.shorten_sources([]) == {}
