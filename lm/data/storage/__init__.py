"""Read files: object storage (gs://, s3:// and hf:// through fsspec) and compressed files.

remote_path.py    paths of objects with the read methods of pathlib.Path
range_cache.py    bounded cache of byte ranges on the local disk
byte_ranges.py    byte ranges read by threads, ahead of their use
decompression.py  gzip, zstd, bzip2 and xz
"""
