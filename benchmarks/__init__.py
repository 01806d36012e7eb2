"""Microbenchmarks: shapes and their counts, peers, timing, checks, tables. Start at `run.py`."""
