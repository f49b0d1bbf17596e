"""Read datasets of the Hugging Face hub.

hub_dataset.py    names, commits and shards
"""
