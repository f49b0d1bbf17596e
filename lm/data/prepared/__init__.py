"""Verify prepared text: its files agree with their checksums, and a run with its text.

block_checksums.py    SHA-256 of files in blocks; damage of a file, computed once per process
corpus_manifest.py    manifest of a prepared source, with the checksums of its files
token_file.py         token ids whose blocks are verified when they are first read
recorded_text.py      comparison of the text and the tokenizer with the records of a run
document_hashes.py    hash set of documents on disk, for equal documents and near-duplicates
hash_runs.py          set of 64-bit hashes in sorted files
temporary_folders.py  folders of a preparation, which a later call deletes after a kill
"""
