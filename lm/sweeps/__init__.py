"""Sweeps of runs: estimate the cost, train locally or on SLURM, predict the target run.

design.py            cooldown branches of a trunk run, compared with independent runs
hyperparameter_values.py  learning rate, batch size and weight decay by a rule
planning/            time, memory and cost of a run, also on absent hardware
run_order.py         parents before children, the predicted run last
attempts.py          attempts that failed or whose process died
launcher.py          validate a sweep, pending runs, run_pending
workers.py           worker processes on this machine
slurm.py             the batch script and the queue
prediction.py        predict the target run before it starts
coordinate_check.py  activation scale against width and depth
"""
