"""Prepare text beyond one machine by datatrove, with local processes, SLURM or Ray.

datatrove_engine.py   executors, stages and their completion
pipeline_steps.py     read, filter and encode the documents of a task
task_records.py       files of encoded documents
"""
