"""Train on web text, Wikipedia, news, Reddit, code and books from TensorFlow Datasets.

    uv run python -m experiments.prepare --config=configs/web.py --num_workers=16
    uv run python -m experiments.train --config=configs/web.py:100M

Build each data set once on a machine with TensorFlow and Apache Beam, copy its folder, and set
TFDS_DATA_DIR to the folder of all data sets, which may be in a bucket (gs:// or s3://):

    tfds build wikipedia/20230601.en --file_format=array_record --data_dir=my/tfds

dolma contains code, Stack Exchange, Common Crawl, papers and books. Add other dumps (Quora, Stack
Overflow) as sources such as jsonl:quora/*.jsonl.zst?field=answer.

Hardware and time: needs the data sets on disk and an accelerator. `experiments.plan` estimates its
time and memory.
"""

from lm.config import hyperparameter_rules, model_sizes, schema

SOURCES = {
    "tfds:wikipedia/20230601.en/train": 0.15,
    "tfds:lm1b/train": 0.05,
    "tfds:c4/en/train": 0.35,
    "tfds:reddit/train?field=content": 0.1,
    "tfds:dolma/train": 0.3,
    "tfds:pg19/train?field=book_text": 0.05,
}


def get_config(size: str = "100M") -> schema.Run:
    """Return the recipe for a size of model_sizes.LADDER or model_sizes.EXPERTS."""
    run = schema.Run(name=f"web-{size}")
    run.model = model_sizes.ladder_model(size)
    run.data.sources = dict(SOURCES)
    run.data.tokenizer = "bpe:32768"
    run.data.heldout_fraction = 0.001
    run.data.on_error = "skip"
    run.data.min_words = 50
    run.data.max_repeats = 0.3
    run.data.drop_near_duplicates = True
    run.data.decontaminate_ngram = 13
    run.data.seq_len = 1024
    # Further epochs help little: Muennighoff et al. 2023, arXiv:2305.16264.
    run.data.max_epochs = 4.0
    # 20 tokens per active parameter: Hoffmann et al. 2022, arXiv:2203.15556.
    n_params = model_sizes.count_parameters(model_sizes.resolved_model(run))["active"]
    hyperparameter_rules.apply_step_law(run, n_tokens=20 * n_params)
    return run
