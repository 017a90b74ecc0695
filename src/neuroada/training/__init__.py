"""From a recipe to a trained adapter in a run folder, one step a module."""
