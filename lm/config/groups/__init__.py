"""Groups of config fields that have a file of their own, see lm/config/schema.py."""
