"""Learns by running the model: prompts, samples, ranges, rounding, error statistics."""
