"""Audit of prediction_results.json, and of the predictions of earlier targets of a sweep."""

import json
from collections.abc import Iterator

from lm.reports.audit import prediction_chain, prediction_results
from lm.runs import json_files
from lm.runs.integrity import prediction_log, record_checksums, sweep_files


def verify_results(chain: prediction_chain.Chain) -> Iterator[prediction_chain.Link]:
    """Verify that the results of a report follow from the prediction and the records.

    A report that is older than the end of the target has no results, and a sweep may have none.
    """
    yield from _verify_earlier(chain)
    file = chain.folder / prediction_results.FILE
    if not file.exists():
        return
    try:
        stored = json_files.read_record(file)
    except ValueError as error:
        yield prediction_chain.Link(prediction_chain.CONTRADICTION, str(error))
        return
    stored.pop(record_checksums.VERSION, None)
    results = prediction_results.load_prediction_results(chain.folder, list(chain.rows.values()))
    repeated = json.loads(json_files.to_json(results))
    yield prediction_chain.compare(
        prediction_results.has_equal_numbers(stored, repeated),
        f"{file} has the results of {len(stored.get('quantities', []))} predicted numbers",
        "prediction.json and the records give others: write the report again",
    )


def _verify_earlier(chain: prediction_chain.Chain) -> Iterator[prediction_chain.Link]:
    """Verify the hashes of predictions of earlier targets."""
    for content in sweep_files.read_earlier_predictions(chain.folder):
        content.pop(record_checksums.VERSION, None)
        target, sha256 = content["target"], prediction_log.content_sha256(content)
        hashes = [
            entry.get("prediction")
            for entry in chain.entries
            if (entry.get("kind"), entry.get("target")) == (prediction_log.PREDICTION, target)
        ]
        file = sweep_files.earlier_file(chain.folder, target)
        if sha256 not in hashes and chain.has_short_paths(file.name, sha256):
            text = f"{file}: paths are shortened in an archive"
            yield prediction_chain.Link(prediction_chain.UNVERIFIABLE, text)
        else:
            text = f"{prediction_log.FILE} records another hash"
            is_last = bool(hashes) and hashes[-1] == sha256
            yield prediction_chain.compare(is_last, f"{file} has SHA-256 {sha256}", text)
