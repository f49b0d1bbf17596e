"""Checks of the fields of one group of a run together. lm/config/validation.py calls them."""
