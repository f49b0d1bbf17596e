"""The decoder-only transformer and its parts. Parameters are a nested dict of arrays.

Every weight names its logical axes where it is declared; these names determine its sharding and
parametrization. Files in reading order:

    transformer.py      decoder, initialization, logits, losses
    attention.py        blockwise, cuDNN and splash attention; choice of the backend
    embedding.py        lookup of token embeddings and the gradient of their table
    layers.py           norms, MLP, declaration of weights
    moe.py              mixture of experts: router, dispatch, load balance
    lora.py             low-rank adapters
    parametrization.py  standard, muP, CompleteP
    kv_cache.py         decoder with a key-value cache
    params.py           parameter trees by path
    memory_estimate.py  analytic memory of a train step; runs that do not fit are rejected
    hf/                 models of Hugging Face transformers
"""
