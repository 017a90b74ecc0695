"""Data and metrics, one module a family of tasks."""
