"""Models in the format of Hugging Face transformers. Files in reading order:

architectures.py  the table of families: tensor names and config fields
tensor_layout.py  the tensors of a model, and the weights that are their parts
config_fields.py  fields of a model from and to config.json
sentencepiece_conversion.py  tokenizer.json with the ids of a SentencePiece model
tokenizer_files.py  tokenizer, chat template and special tokens of an exported folder
chat_templates.py  chat template of a model, and the prompt of a conversation
weight_blocks.py  weights on a mesh, assembled one matrix at a time
load.py           read a folder
export.py         write a folder
"""
