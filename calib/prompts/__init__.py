"""Calibration prompts: aspects, coverage, and the grammar and models that write captions."""
