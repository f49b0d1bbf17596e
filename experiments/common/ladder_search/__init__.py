"""Ladders whose runs are chosen one after another, and the limits of a search."""
