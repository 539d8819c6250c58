"""Graph clean-ups, one per file."""
