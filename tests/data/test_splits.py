"""The rule that assigns a document to the held-out split."""

import hashlib
import shutil

import pytest

from lm.data import splits
from lm.data.sources import documents, readers

DOCUMENTS = [readers.Document(f"text {i}", f"file {i}") for i in range(2000)]


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 1.0])
def test_fraction_of_documents_is_held_out(fraction):
    share = sum(splits.is_heldout(document, fraction) for document in DOCUMENTS) / len(DOCUMENTS)
    assert share == pytest.approx(fraction, abs=0.03)


def test_larger_fraction_holds_out_a_superset():
    small, large = (
        {document.text for document in DOCUMENTS if splits.is_heldout(document, fraction)}
        for fraction in (0.1, 0.3)
    )
    assert small < large


def test_given_digest_equals_the_hash_of_the_text():
    for document in DOCUMENTS[:100]:
        digest = hashlib.sha256(document.text.encode()).digest()
        assert splits.is_heldout(document, 0.3, digest) == splits.is_heldout(document, 0.3)


def test_documents_of_one_home_share_a_split():
    documents = [readers.Document(f"text {i}", f"file {i}", home="conversation") for i in range(50)]
    assert len({splits.is_heldout(document, 0.5) for document in documents}) == 1


def write_files(folder, n_files: int, n_lines: int = 2000) -> str:
    """Write text files of several pieces and return their source."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n_files):
        lines = [f"file {i} line {j} of some length\n\n" for j in range(n_lines)]
        (folder / f"{i}.txt").write_text("".join(lines))
    return f"text:{folder}"


def sides(source: str, fraction: float) -> dict[str, list[bool]]:
    """Return {file name: [True if the piece is held out, for each piece]}."""
    split = splits.plan_split(source, fraction)
    result: dict[str, list[bool]] = {}
    for document in documents.open_source(source):
        name = document.name.rpartition(" at byte")[0].rpartition("/")[2]
        result.setdefault(name, []).append(split.is_heldout(document))
    return result


@pytest.mark.parametrize(
    "n_files, fraction", [(2, 0.05), (2, 0.5), (3, 0.95), (5, 0.05), (60, 0.1)]
)
def test_pieces_of_one_of_several_files_share_a_split(tmp_path, n_files, fraction):
    pieces = sides(write_files(tmp_path, n_files), fraction)
    assert len(pieces) == n_files and all(len(flags) > 2 for flags in pieces.values())
    assert all(len(set(flags)) == 1 for flags in pieces.values())
    n_heldout = sum(flags[0] for flags in pieces.values())
    assert 1 <= n_heldout < n_files
    assert abs(n_heldout - n_files * fraction) < 5


def test_split_does_not_depend_on_the_path_or_file_names(tmp_path):
    first = sides(write_files(tmp_path / "a", 30), 0.2)
    source = write_files(tmp_path / "b" / "c", 30)
    assert sides(source, 0.2) == first
    for i in range(30):
        shutil.move(tmp_path / "b" / "c" / f"{i}.txt", tmp_path / "b" / "c" / f"z{99 - i}.txt")
    renamed = sides(source, 0.2)
    assert {f"{i}.txt": renamed[f"z{99 - i}.txt"] for i in range(30)} == first


def test_single_file_is_split_by_piece(tmp_path):
    source = write_files(tmp_path, 1, 20_000) + "/0.txt"
    (flags,) = sides(source, 0.2).values()
    assert 0 < sum(flags) < len(flags)
    split = splits.plan_split(source, 0.2)
    assert flags == [
        splits.is_heldout(document._replace(home=""), 0.2)
        for document in documents.open_source(source)
    ]
    assert split.is_by_piece


@pytest.mark.parametrize("n_copies", [1, 4])
def test_few_pieces_of_one_text_are_on_both_sides(tmp_path, n_copies):
    """Copies of one file are one text: their pieces are divided as those of a single file."""
    write_files(tmp_path, 1, 1500)
    for i in range(1, n_copies):
        shutil.copy(tmp_path / "0.txt", tmp_path / f"{i}.txt")
    for fraction in (0.001, 0.999):
        flags = [flag for values in sides(f"text:{tmp_path}", fraction).values() for flag in values]
        assert len(set(flags)) == 2


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_largest_file_is_trained_on_if_hashes_are_on_one_side(tmp_path, fraction):
    source = write_files(tmp_path, 4)
    with open(tmp_path / "2.txt", "a") as file:
        file.write("more text\n" * 999)
    pieces = sides(source, fraction)
    assert not any(pieces["2.txt"])
    assert sum(flags[0] for flags in pieces.values()) == (1 if fraction < 0.5 else 3)
    assert splits.plan_split(source, fraction).depends_on_all_files


@pytest.mark.parametrize("fraction, expected", [(0.0, False), (1.0, True)])
def test_fractions_zero_and_one_hold_out_no_or_all_files(tmp_path, fraction, expected):
    pieces = sides(write_files(tmp_path, 3), fraction)
    assert all(flag == expected for flags in pieces.values() for flag in flags)


def test_short_files_are_split_as_documents_of_other_sources(tmp_path):
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(f"text {i}")
    pieces = sides(f"text:{tmp_path}", 0.3)
    expected = [splits.is_heldout(document, 0.3) for document in DOCUMENTS[:40]]
    assert [pieces[f"{i}.txt"] for i in range(40)] == [[flag] for flag in expected]


def test_unreadable_and_blank_files_do_not_stop_the_plan(tmp_path):
    source = write_files(tmp_path, 3)
    (tmp_path / "binary.txt").write_bytes(b"a\0b")
    (tmp_path / "blank.txt").write_text("\n \n")
    assert splits.plan_split(source, 0.01).heldout_keys


def test_warning_counts_pieces_and_files():
    counts = {"documents": {"heldout": 15}, "groups": {"train": 93, "heldout": 12}}
    warning = splits.heldout_warning("text:a", counts, 0.05)
    assert warning.startswith("text:a: held-out split: 15 pieces of 12 files. Fewer than 50 ")
    assert warning.endswith("add files, or raise data.heldout_fraction=0.05")
    counts["groups"] = {"train": 1, "heldout": 1}
    single = splits.heldout_warning("text:a", counts, 0.05)
    assert "15 pieces of 1 file." in single and single.endswith("small: add files")


@pytest.mark.parametrize(
    "n, fraction, is_warned", [(49, 0.1, True), (50, 0.1, False), (0, 0, False)]
)
def test_warning_below_fifty_documents(n, fraction, is_warned):
    numbers = {"train": 99, "heldout": n}
    counts = {"documents": numbers, "groups": numbers}
    warning = splits.heldout_warning("jsonl:a", counts, fraction)
    assert bool(warning) == is_warned
    assert not warning or f"held-out split: {n} documents. Fewer than 50" in warning


def test_grouped_documents_are_described():
    assert splits.describe_heldout("chat:a", 30, 10) == "30 documents in 10 groups"
    assert splits.describe_heldout("code", 1, 1) == "1 document"


@pytest.mark.parametrize("n_files", [1, 2, 5])
def test_pieces_of_a_file_are_one_group(tmp_path, n_files):
    """Standard errors count files as independent, also if the pieces of a file are divided."""
    source = write_files(tmp_path, n_files, 1500)
    split = splits.plan_split(source, 0.3)
    groups: dict[str, set[bytes]] = {}
    for document in documents.open_source(source):
        name = document.name.rpartition(" at byte")[0]
        digest = hashlib.sha256(document.text.encode()).digest()
        groups.setdefault(name, set()).add(split.group(document, digest))
    assert len(groups) == n_files and all(len(group) == 1 for group in groups.values())
    assert len(set.union(*groups.values())) == n_files
