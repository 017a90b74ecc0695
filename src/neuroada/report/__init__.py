"""Records to tables and figures; imports no torch."""
