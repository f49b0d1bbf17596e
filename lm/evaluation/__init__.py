"""Evaluate a model: held-out loss, tasks, log-likelihood of given answers, generation.

Task definitions, metrics and baselines use NumPy and SciPy only. The modules that run a model use
JAX.

    heldout.py            loss, bits per byte, word completion
    tasks.py              task definitions
    task_eval.py          evaluate tasks during training
    task_metrics.py       accuracy, Brier score, exact match and other metrics
    contamination.py      overlap of tasks with the training text
    scoring.py            log-likelihood of given answers
    coverings.py          probabilities of the tokens at the end of a prompt
    generation.py         sampling, streaming, stop strings
    decoding.py           compiled programs for scoring, prefill and decoding
    early_stopping.py     steps of evaluations, the best one, early stopping
    lm_eval_harness.py    adapter for lm-evaluation-harness
    harness/              tasks of lm-evaluation-harness by name
    task_files/           lines of task files, and the versions of the files
    minimal_pairs/        files of minimal pairs, and their results per paradigm
    baselines/            n-gram models, bag of words, and tests against them
"""
