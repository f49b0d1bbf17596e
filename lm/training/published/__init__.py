"""Evaluate models that others have published, and record the results like those of runs.

model_folders.py      find the folder of a model, and read its shape and tokenizer
model_weights.py      load the weights onto the mesh
model_records.py      run directories that contain the results of published models
"""
