"""Trained models loaded again, scored, merged, and compared with their merged form."""
