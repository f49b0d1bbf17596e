"""Simple baselines of tasks. An ability is a score above the best of them.

ngram_counts.py      token and bigram counts of the training text, cached
ngram_models.py      unigram and bigram models, scores of answers
bag_of_words.py      classification by the words of a text
nearest_translation.py   translation of the most similar training sentence
word_translation.py      translation word by word with IBM model 1
translations.py          translations of a task by simple methods, cached
task_baselines.py    the baselines of each kind of task
paired_tests.py      tests of a model against baselines on the same items
"""
