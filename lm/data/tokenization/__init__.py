"""Use the tokenizers of lm/data/tokenizers.py for runs, published models and prompts of tasks.

bpe_training.py     train the tokenizer bpe:SIZE once
run_tokenizer.py    tokenizer and vocabulary size of a run
special_tokens.py   start, end and stop tokens in the files of a checkpoint
token_bytes.py      bytes of text that the tokens of a published vocabulary represent
token_healing.py    tokens of a prompt and its answer, and of their boundary
"""
