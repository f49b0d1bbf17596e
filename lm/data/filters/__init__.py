"""Remove text that is also in held-out documents, and count words in any script.

ngrams.py           words and n-gram hashes of a text
blocked_ngrams.py   index of the n-grams that training text must not contain
decontamination.py  cut these n-grams out of a document
"""
