"""Code that the commands share: flags and exit codes, console output."""
