"""Recipes: functions that build the config of a run. README.md in this folder lists them."""
