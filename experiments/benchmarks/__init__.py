"""Benchmarks: commands that measure the speed of the code."""
