"""Many runs: estimate their cost, launch them here or on SLURM, predict the target run.

design.py            cooldown branches of a trunk run, and whether they agree with separate runs
planning/            time, memory and cost of a run on any hardware
launcher.py          order of the runs, pending runs, run_pending
workers.py           local worker processes
slurm.py             the batch script and the queue
prediction.py        predict the target run before it starts
coordinate_check.py  activation scale against width and depth
"""
