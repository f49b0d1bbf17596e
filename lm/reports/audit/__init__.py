"""Predict the target run of a sweep, and verify from its records that nothing was changed later.

target_prediction.py  predict the target run from the rows of the others, with all input hashes
ability_prediction.py predict the scores of its tasks, and the tasks above their baseline
ability_backtest.py   predict the largest fitted sizes from smaller ones, and compare
prediction_results.py every predicted number beside the measured one
prediction_times.py   order of the prediction and of the training of its target
verdict_rounding.py   round results and intervals without changing the verdict
prediction_chain.py   the files that an audit compares, and the result of a comparison
prediction_audit.py   verify the chain from the fitted runs to the result of the target run
results_audit.py      verify the stored results, and the predictions of earlier targets
repeated_fit.py       fit the law again, and compare its interval and draws
"""
