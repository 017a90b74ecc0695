"""What a recipe names, opened: the base model, the data and the tests."""
