"""Goodness of fit: tests of the form of a law with the residuals of its rows.

form_tests.py  outliers, curved residuals, sequences of residuals with equal signs
"""
