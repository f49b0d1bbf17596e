"""Verify the records of a run when they are read. The package does not import JAX.

record_checksums.py   checksums of JSON objects and of JSON lines, and the version of the format
stored_config.py      config and facts of a run directory, and their format
stored_results.py     counts that follow from the config, results that a run must have
changed_fields.py     config fields that may change when a run continues
record_lines.py       lines of the .jsonl files: repair, flush, count, describe lost lines
restarts.py           changes of the .jsonl files before the next attempt of a run
sweep_files.py        sweep.json, plan.json and prediction.json
prediction_log.py     predictions.jsonl, and hashes of the records that a prediction depends on
sweep_fingerprint.py  hash of the code and of the state of all records, for a report
run_notes.py          sentences about runs and lines that a reader leaves out
"""
