"""A dataset of the hub is read at one recorded commit, and a preparation resumes by its files."""

import sys
import types

import pytest
from fixtures.text_corpora import assert_equal_corpora, data_config, read_split

from lm.data import corpus, preprocessing, staging
from lm.data.sources.hub import hub_dataset


class Rows:
    """Stream of a fake dataset. Its files are lists of texts."""

    def __init__(self, hub: "FakeHub", files: list[list[str]]):
        self.hub, self.files, self.num_shards = hub, files, len(files)

    def shard(self, n_shards: int, number: int) -> "Rows":
        assert n_shards == self.num_shards
        return Rows(self.hub, [self.files[number]])

    def __iter__(self):
        for texts in self.files:
            self.hub.read_files.append(texts[0])
            for text in texts:
                if text == self.hub.broken:
                    raise RuntimeError("connection lost")
                yield {"text": text}


class FakeHub:
    """Modules datasets and huggingface_hub. commits: {commit: files}; branches: {name: commit}."""

    def __init__(self):
        files = [[f"{name} {i} text" for i in range(50)] for name in "abcd"]
        self.commits, self.branches = {"c1": files}, {"main": "c1"}
        self.is_online, self.broken, self.read_files = True, "", []

    def dataset_info(self, name, revision=None):
        if not self.is_online:
            raise ConnectionError("no\nroute")
        return types.SimpleNamespace(sha=self.branches.get(revision or "main", revision))

    def load_dataset(self, name, config, split, streaming, revision):
        assert (name, config, split, streaming) == ("owner/name", None, "train", True)
        return Rows(self, self.commits[revision])


@pytest.fixture
def hub(monkeypatch) -> FakeHub:
    hub = FakeHub()
    datasets = types.SimpleNamespace(load_dataset=hub.load_dataset)
    api = types.SimpleNamespace(HfApi=lambda: hub)
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    monkeypatch.setitem(sys.modules, "huggingface_hub", api)
    monkeypatch.setattr(staging, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(preprocessing, "CHARACTERS_PER_TASK", 100)
    hub_dataset.read_commit.cache_clear()
    yield hub
    hub_dataset.read_commit.cache_clear()


def prepare(tmp_path, source: str = "hf:owner/name/train", **changes):
    hub_dataset.read_commit.cache_clear()  # as in another process
    return corpus.prepare_corpus(data_config(tmp_path, source, **changes))[source]


def test_changed_content_is_prepared_again_with_its_commit(tmp_path, hub):
    first = prepare(tmp_path)
    assert first.versions == {"commit": "c1"} and sum(first.documents.values()) == 200
    assert prepare(tmp_path) == first
    hub.commits["c2"], hub.branches["main"] = hub.commits["c1"][:3], "c2"
    second = prepare(tmp_path)
    assert second.versions == {"commit": "c2"} and sum(second.documents.values()) == 150
    assert first.hash != second.hash and first.folder != second.folder
    hub.branches["old"] = "c1"
    assert prepare(tmp_path, "hf:owner/name@old/train").hash == first.hash
    hub.is_online = False
    assert prepare(tmp_path).hash == second.hash  # the newest prepared text
    with pytest.raises(ValueError) as caught:
        prepare(tmp_path, "hf:owner/name@other/train")
    assert "hf:owner/name@other: its commit cannot be read (no route): correct" in str(caught.value)


def test_complete_commit_needs_no_lookup(tmp_path, hub):
    commit = "0123456789abcdef" * 2 + "01234567"
    hub.commits[commit], hub.is_online = hub.commits["c1"], False
    assert prepare(tmp_path, f"hf:owner/name@{commit}/train").versions == {"commit": commit}


def test_text_of_an_earlier_version_is_opened_as_before(tmp_path, hub, monkeypatch):
    monkeypatch.setattr(hub_dataset, "hub_fingerprint", lambda source, *_: [source])
    old = prepare(tmp_path)
    assert old.versions == {}
    monkeypatch.undo()
    assert prepare(tmp_path) == old


def test_preparation_resumes_with_the_current_file(tmp_path, hub):
    expected = prepare(tmp_path / "uninterrupted")
    hub.broken = "c 20 text"
    with pytest.raises(ValueError, match="shard 2: reading failed .connection lost.: repeat"):
        prepare(tmp_path)
    hub.broken, hub.read_files = "", []
    resumed = prepare(tmp_path)
    assert hub.read_files == ["c 0 text", "d 0 text"]
    assert_equal_corpora(resumed, expected)
    assert len(read_split(resumed, "train")) == resumed.documents["train"]


def test_tokenizer_learns_from_all_files(tmp_path, hub):
    hub.commits["c1"] = [[f"{name * 9} {i}" for i in range(50)] for name in "abcdefgh"]
    manifest = prepare(tmp_path, tokenizer="bpe:300")
    from lm.data import tokenizers

    tokenizer = tokenizers.load_tokenizer(manifest.folder)
    assert all(len(tokenizer.encode(name * 9)) <= 5 for name in "abcdefgh")


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("a/b/train", ("a/b", "", "", "train")),
        ("a/b@v1:en/sft", ("a/b", "v1", "en", "sft")),
        ("a/b@refs/convert/parquet/test", ("a/b", "refs/convert/parquet", "", "test")),
        ("imdb:plain/test[:9]", ("imdb", "", "plain", "test[:9]")),
    ],
)
def test_names_have_revisions_and_configurations(dataset, expected):
    assert tuple(hub_dataset.parse_hub_name(dataset)) == expected
