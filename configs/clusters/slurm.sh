#!/bin/bash
# Train one run on two nodes of eight GPUs, with one process per node:
#
#     sbatch configs/clusters/slurm.sh
#
# This file has never run on a cluster. 90 seconds before the time limit, SLURM sends USR1, and at
# preemption TERM or USR1: the run then saves its state.
# A status of 124 or more is a stall or a signal: the job is queued again and continues the run.
# A sweep needs no script: see experiments.sweep --on=slurm.
#SBATCH --job-name=pod-1B --nodes=2 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=64
#SBATCH --time=24:00:00 --requeue --signal=USR1@90 --open-mode=append
srun --kill-on-bad-exit=1 uv run --extra gpu python -m experiments.train \
  --config=configs/pod.py:1B --config.mesh.fsdp=8 --config.data.cache_dir=/shared/data --config.dir=/shared/runs
status=$?
[ $status -ge 124 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ] && scontrol requeue "$SLURM_JOB_ID"
exit $status
