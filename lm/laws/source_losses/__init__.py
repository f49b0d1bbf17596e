"""Losses of single sources, tasks and new corpora, predicted from the total loss.

loss_to_loss    law between two losses of the same runs
"""
