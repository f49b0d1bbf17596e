"""Turn text into batches: documents -> token files with a manifest -> TokenDataset.batch(step).

A batch depends only on the config, the seed and the step. The package does not import JAX.

    sources/              read documents from files, Hugging Face, TFDS and generators
    tokenizers.py         bytes, BPE and SentencePiece
    tokenization/         trained BPE, tokenizer of a run, special tokens, prompt and answer
    splits.py             the rule for held-out documents
    filters/              cut text out of documents that is also in held-out text
    preprocessing.py      tokenize, hash and filter documents
    staging.py            interrupted preparation, local copy of a remote cache
    storage/              object storage and compressed files
    pretokenized/         token files of other trainers
    prepared/             checksums and manifest of prepared text, comparison with a run
    corpus.py             prepare each source once
    mixture.py            order of sources and rows
    packing.py            pack complete documents into rows
    prefetch.py           batches and rows of remote files before they are needed
    dataset.py            open_dataset(data, seed), TokenDataset.batch(step)
    heldout_documents.py  rows and documents of the held-out text
    evaluation_text.py    text on which a finished run is evaluated
"""
