"""Short names of sources and tasks."""

from lm.runs import short_names


def test_equal_file_names_get_folders():
    sources = ["text:/a/x/wiki.txt", "text:/b/x/wiki.txt", "jsonl:books/*.jsonl.gz?field=body"]
    shortened = short_names.shorten_sources([*sources, "code", "tasks:copy+sort"])
    expected = ["a/x/wiki", "b/x/wiki", "books", "code", "tasks"]
    assert list(shortened.values()) == expected


def test_options_distinguish_two_sources_of_a_file():
    file = "chat:my/sst2/train.jsonl.gz"
    sources = [f"{file}?instruction=Good+or+bad%3F", file, "chat:my/qnli/train.jsonl.gz?cap=5"]
    expected = ["sst2/train?instruction=Good or bad?", "sst2/train", "qnli/train"]
    assert list(short_names.shorten_sources(sources).values()) == expected


def test_token_files_have_the_name_of_their_file():
    sources = ["tokens:my/wiki.bin", "tokens:my/books/*.ds?dtype=uint16", "tokens:my/news.ds"]
    assert list(short_names.shorten_sources(sources).values()) == ["wiki", "books", "news"]


def test_short_task_names_have_no_folder_and_no_n():
    assert short_names.shorten_task("file:/my/tasks/piqa?shots=2&n=100") == "piqa?shots=2"
    assert short_names.shorten_task("copy?length=4&n=200") == "copy?length=4"
    assert short_names.shorten_task("pair:my/agreement.tsv.gz?n=9") == "agreement"


def test_names_that_cannot_differ_are_full_names():
    sources = ["text:a.txt", "jsonl:a.jsonl"]
    assert list(short_names.shorten_sources(sources).values()) == sources
    assert short_names.shorten_sources([]) == {}
