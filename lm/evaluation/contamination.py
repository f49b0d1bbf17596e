import numpy as np

from lm.config import schema
from lm.data import preprocessing
from lm.data.sources import documents
from lm.evaluation import tasks


def count_overlaps(
    tasks: list[tasks.Task], data: schema.Data, n: int = 13
) -> dict[str, dict[str, int]]:
    """Count the examples of each task that share n consecutive words with the training text.

    Returns {task: {"n_overlap": examples that do, "n_checkable": examples of at least n words}}.
    Reads all sources once.
    """
    ngrams = {
        task.name: [
            preprocessing.ngram_hashes(
                example.prompts[example.right] + example.answers[example.right], n
            )
            for example in task.examples
        ]
        for task in tasks
    }
    task_ngrams = np.unique(
        np.concatenate(
            [preprocessing.NONE, *(hashes for rows in ngrams.values() for hashes in rows)]
        )
    )
    is_in_training = np.zeros(len(task_ngrams), bool)
    for source in data.sources if len(task_ngrams) else ():
        for document in documents.open_source(source):
            if not preprocessing.is_heldout(document, data.heldout_fraction):
                hashes = preprocessing.ngram_hashes(document.text, n)
                index = np.minimum(np.searchsorted(task_ngrams, hashes), len(task_ngrams) - 1)
                is_in_training[index[task_ngrams[index] == hashes]] = True
    counts = {}
    for name, rows in ngrams.items():
        has_overlap = [
            bool(is_in_training[np.searchsorted(task_ngrams, hashes)].any())
            for hashes in rows
            if len(hashes)
        ]
        counts[name] = {"n_overlap": sum(has_overlap), "n_checkable": len(has_overlap)}
    return counts
