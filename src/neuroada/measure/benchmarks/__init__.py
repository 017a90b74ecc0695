"""One module a benchmark: what is timed or counted, and the records it makes."""
