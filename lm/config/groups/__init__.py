"""Declare the config groups that have a file of their own.

model_config.py  the group model

The group optim is in lm/config/optimizer_config.py. The other groups are in lm/config/schema.py.
"""
