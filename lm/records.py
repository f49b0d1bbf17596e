"""The run directory: how a run is written down, and how all runs of a folder are read as rows.

    runs/quickstart/100K/
        config.json       every knob of the run, as lm/config.py declares it
        facts.json        what the run is: status, counts, FLOPs, devices, versions, corpus
        metrics.jsonl     a line each log step: step, loss, tokens_per_second, ...
        evals.jsonl       a line each evaluation: step, loss, bits_per_byte, ...
        checkpoints/      written by lm/checkpoint.py
        tensorboard/      the metrics again, for TensorBoard
"""
