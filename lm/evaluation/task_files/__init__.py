"""Files of tasks.

task_lines.py      find the file of a split, read its lines, convert them into examples
"""
