"""Command lines. README.md in this folder lists them."""
