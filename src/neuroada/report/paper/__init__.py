"""The papers' own tables and figures, and their published scores."""
