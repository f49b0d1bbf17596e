"""Laws as formulas: user-defined forms, and forms and coefficients of other papers.

expressions.py       formulas as text
custom.py            user-defined formulas with starts and bounds
parameter_priors.py  their normal priors
published_laws.py    forms and coefficients of other papers
"""
