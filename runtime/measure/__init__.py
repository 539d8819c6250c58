"""Timing, quality, cost, and the report that joins them."""
