"""Read documents from a source that is named by a URI such as jsonl:notes/*.jsonl?field=text.

Each source is split into shards, so that an interrupted preparation resumes after the last shard.

    uri.py                   parse name?key=value
    documents.py             source URI -> documents; Hugging Face hub
    source_files.py          names, compression, encoding and lines of files
    path_permissions.py      permissions of the paths that a stored run names
    readers.py               text, JSON Lines, Parquet
    tfds.py                  TensorFlow Datasets without TensorFlow
    builtin.py               Python's standard library and its docstrings
    synthetic_languages.py   languages of known entropy
    synthetic_tasks.py       copy, sort, addition and other tasks
    chat.py                  conversations, templates, answer mask, rated responses
    example_formats.py       formats of the lines of task files
"""
