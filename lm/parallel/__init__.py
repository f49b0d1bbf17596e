"""Device meshes, sharding by logical axis names, and runs of several processes.

Files in reading order:

mesh.py              build a mesh, shard arrays, permute positions
xla_flags.py         compiler options of a platform
program_cache.py     folder of compiled programs, one per user
cluster.py           the processes of a run by flags and the environment of a cluster
distributed.py       start of several processes, collectives
peer_connections.py  detection of dead processes
device_memory.py     free memory of the devices
gpu_memory.py        part of a GPU's memory that JAX reserves
peak_flops.py        peak FLOP/s of accelerators from data sheets
platform_facts.py    versions, drivers and CPU models on which the bits of a step depend
deterministic.py     gradient sums that do not depend on the number of devices
"""
