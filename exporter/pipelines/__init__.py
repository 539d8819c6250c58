"""Pipelines of diffusers as they are saved: every network of one in the place that its family has for it."""
