"""Run folders to one HTML page that needs no network; imports no torch."""
