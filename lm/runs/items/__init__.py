"""Results per item of an evaluation: points of task examples, and files of arrays.

array_files.py   read arrays of an .npz file that may be damaged
task_items.py    tasks.npz, the points of each task example in the last evaluation of a run
"""
