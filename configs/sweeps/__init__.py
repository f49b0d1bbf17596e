"""Sweeps: functions that build the configs of several runs."""
