"""Measurements one can repeat: each module prints a table and one JSON line."""
