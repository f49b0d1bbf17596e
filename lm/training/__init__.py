"""Training: the loop, the compiled step, the optimizer, verified checkpoints, metrics.

Pre-training, fine-tuning, cooldown branches and instruction tuning use the same loop.

    loop.py                 train(run), and calls of several steps
    session.py              restore, log, evaluate, save and finish one run
    step.py                 compiled functions of a run
    optimizer.py            trainable parameters, learning-rate schedule, optimizers
    checkpoints.py          save and restore
    checkpointing/          checksums of a checkpoint, and the deletion of old ones
    warm_start.py           start from another run or from a Hugging Face folder
    metric_log.py           facts and metric rows
    trackers.py             copies for TensorBoard and W&B
    preemption.py           signals and the stall watchdog
    vmapped_runs.py         several runs in one program
    programs/               compile the functions of a run
    published/              evaluate models that others have published
    loaded_model.py         open a trained model: generate, score, params, tokenizer
"""
