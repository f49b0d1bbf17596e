"""Read and write the files of a run: records, locks, atomic writes, status.

Analysis code reads runs only through this package. The package does not import JAX.

    filesystem.py   local files and files in a bucket (gs://)
    json_files.py   JSON objects and lines, with their checksums
    records.py      the run directory, load_runs(), column names, runs of a sweep
    run_selection.py   finished runs, trunk runs, token budgets
    task_results.py    standard errors and task metrics of a row
    short_names.py  short names of sources and tasks, for tables and figures
    lock.py         one process per run
    status.py       status and progress of the runs of a sweep
    provenance.py   version, commit and code hash
    phase_timer.py  seconds per phase of a run
    archive.py      the small records of a sweep, for git
    integrity/      checksums, format version and counts, verified when records are read
"""
