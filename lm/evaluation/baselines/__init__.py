"""Simple baselines of tasks. An ability is a score above the best of them.

ngram_counts.py      token and bigram counts of the training text, cached
ngram_models.py      unigram and bigram models, scores of answers
bag_of_words.py      classification by the words of a text
task_baselines.py    the baselines of each kind of task
paired_tests.py      tests of a model against baselines on the same items
"""
