"""Ways to compute the deltas' gradient, and the choice between them."""
