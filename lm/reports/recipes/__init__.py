"""Reports of the comparison of two recipes.

recipe_report.py       the comparison with documents, tasks and the cost of a decision; HTML page
task_differences.py    differences of task accuracy
comparison_record.py   comparison.json and its verification
"""
