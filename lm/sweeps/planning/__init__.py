"""Estimate the time, memory and cost of a run, also on hardware that is not present.

hardware.py          data of TPUs and GPUs; parse a target such as tpu:v5e:4x4
roofline.py          analytic time of a step, with the memory of lm/model/memory_estimate.py
checkpoint_space.py  disk space of the checkpoints of a run
evaluation_program.py memory of the evaluation, compiled for absent hardware
aot_compile.py       ahead-of-time compilation; collectives of a compiled program
cost.py              time and cost of a run
layout_search.py     search mesh, rematerialization policy and gradient accumulation steps
"""
