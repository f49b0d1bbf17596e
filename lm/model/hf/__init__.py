"""Models in the format of Hugging Face transformers. Files in reading order:

architectures.py  tensor names and config fields of Llama, Qwen3, Qwen3-MoE and GPT-2
load.py           read a folder
export.py         write a folder
"""
