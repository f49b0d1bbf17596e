"""Sections of the report about tasks: results by size, predictions, reliability."""
