"""The decoder-only transformer and its parts. Parameters are a nested dict of arrays.

Every weight names its logical axes where it is declared; these names determine its sharding and
parametrization. Files in reading order:

    transformer.py        decoder, initialization, logits, losses
    attention.py          blockwise attention, and the call of the selected kernel
    kernels/              kernels of libraries, their selection, and recomputation policies
    layers.py             norms, MLP, declaration of weights, products with weights
    position_encoding.py  positions in segments, rotary embeddings
    moe.py                mixture of experts: router, dispatch, load balance
    lora.py               low-rank adapters
    parametrization.py    standard, muP, CompleteP
    kv_cache.py           decoder with a key-value cache
    params.py             parameter trees by path
    memory_estimate.py    analytic memory of a train step; runs that do not fit are rejected
    inference_memory.py   analytic memory of evaluation and generation
    hf/                   models of Hugging Face transformers
"""
