"""Search over a recipe's values with Optuna."""
