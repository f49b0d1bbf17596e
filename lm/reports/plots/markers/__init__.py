"""Markers of runs, and marks that are drawn together, because an artist per run takes much longer.

error_bars.py      error bars of several points in their colors
marker_shapes.py   kinds of markers
"""
