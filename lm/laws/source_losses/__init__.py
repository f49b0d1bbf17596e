"""Losses of single sources, tasks and new corpora, predicted from the total loss.

loss_to_loss.py    law between two losses of the same runs
new_corpus.py      law of the loss on a new corpus, from one or two runs
"""
