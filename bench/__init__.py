"""Benchmarks: lakesync beside its peers, in turn, in one run. `python -m bench` (or `make bench`); what came of it is in RESULTS.md."""
