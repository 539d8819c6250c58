"""Runs a denoiser, whatever executes it: schedule, sampler, correction, backends, measuring."""
