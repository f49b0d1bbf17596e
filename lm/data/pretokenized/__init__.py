"""Token files that other trainers have written, read without copying.

token_formats.py         layout of a file: datatrove, Megatron, llm.c, nanoGPT
token_source.py          split, check and describe the files of a source
"""
