"""Kernels of libraries for attention and experts, and the table that selects them.

Files in reading order:

    kernel_table.py      which kernel serves which run, with the reason and the evidence
    fused_attention.py   attention by splash (TPU), cuDNN and tokamax (GPU) on the shards of a mesh
    grouped_products.py  products of the rows of each expert with its weights
    table_lookup.py      rows of a sharded table, such as token embeddings, and their gradient
    kernel_parity.py     comparison of each kernel with plain attention and with plain products
    tokamax_flags.py     default values of the command-line flags of tokamax
    remat_policies.py    which activations the backward pass recomputes, stores or offloads
"""
