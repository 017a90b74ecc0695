"""What a run is asked to do: the sections of a recipe, how one is read, and the methods that it can name."""
