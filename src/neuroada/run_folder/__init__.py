"""What a run leaves: its folder, environment, summary and the adapter's card."""
