"""A search over a recipe's values: Optuna proposes, `runs.train` trains, and the held-out part judges."""
