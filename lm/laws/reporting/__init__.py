"""Reports of a fit: JSON files that can be loaded again, and answers to a reporting checklist.

saved_fit.py   save a fit with its draws and data, load it
checklist.py   questions about form, training, data and fit, with the answers of a fit
"""
