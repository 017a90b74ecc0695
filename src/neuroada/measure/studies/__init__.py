"""Grids of recipes, trained cell by cell, and the records of complete runs."""
