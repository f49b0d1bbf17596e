"""Estimate the time, memory and cost of a run, also for hardware that is not present.

hardware.py       data of TPUs and GPUs; parse a target such as v5e:4x4
roofline.py       memory and time of a step by arithmetic
aot_compile.py    compile for absent hardware; collectives of the compiled program
cost.py           time and cost of a run
layout_search.py  search mesh, rematerialization and gradient accumulation
"""
