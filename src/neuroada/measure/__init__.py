"""Benchmarks: what is run, how it is timed and counted, and the records that it leaves."""
