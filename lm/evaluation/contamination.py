"""Count the task examples that share text with the training data.

Example:

    overlaps = contamination.count_overlaps(task_list, run.data, n=13)
    overlaps["file:my/set"]                  # {"n_overlap": 3, "n_checkable": 500}
"""

from collections.abc import Sequence

import numpy as np

from lm.config import schema
from lm.data import splits
from lm.data.filters import ngrams
from lm.data.sources import documents
from lm.evaluation import tasks


def count_overlaps(
    task_list: Sequence[tasks.Task], data: schema.Data, n: int = 13
) -> dict[str, dict[str, int]]:
    """Count the examples of each task that share n consecutive words with the training text.

    Returns n_overlap and n_checkable by task: examples that share n words, and examples of at least
    n words. An example is its prompt without shots, followed by the correct answer. Reads the
    trained sources of `data` once, without their held-out documents.
    """
    example_ngrams = {
        task.name: [
            ngrams.ngram_hashes(
                example.prompts[example.right].replace(example.shots, "", 1)
                + example.answers[example.right],
                n,
            )
            for example in task.examples
        ]
        for task in task_list
    }
    hash_arrays = [hashes for arrays in example_ngrams.values() for hashes in arrays]
    task_ngrams = np.unique(np.concatenate([np.zeros(0, np.uint64), *hash_arrays]))
    is_in_training = np.zeros(len(task_ngrams), bool)
    trained_sources = [source for source, weight in data.sources.items() if weight > 0]
    for source in trained_sources if len(task_ngrams) else ():
        split = splits.plan_split(source, data.heldout_fraction)
        for document in documents.open_source(source):
            if not split.is_heldout(document):
                hashes = ngrams.ngram_hashes(document.text, n)
                index = np.minimum(np.searchsorted(task_ngrams, hashes), len(task_ngrams) - 1)
                is_in_training[index[task_ngrams[index] == hashes]] = True
    counts = {}
    for name, arrays in example_ngrams.items():
        has_overlap = [
            bool(is_in_training[np.searchsorted(task_ngrams, hashes)].any())
            for hashes in arrays
            if len(hashes)
        ]
        counts[name] = {"n_overlap": sum(has_overlap), "n_checkable": len(has_overlap)}
    return counts
