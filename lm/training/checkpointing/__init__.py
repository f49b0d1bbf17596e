"""Verify the checkpoints of lm/training/checkpoints.py, and delete old ones.

batch_hash.py            hash of the next batch, from the rows of each process
checkpoint_manifest.py   checksums, position of the run, format version
resume_check.py          comparison of the first loss after a restart with the stored loss
read_errors.py           errors of a failing disk or network, and errors of damaged files
checkpoint_retention.py  checkpoints that are preserved, and safe deletion of the others
"""
