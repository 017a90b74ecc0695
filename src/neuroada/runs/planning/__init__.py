"""What training would take, counted before any weight is loaded."""
