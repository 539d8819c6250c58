"""Handwritten digits: a class-conditional diffusion model, and a network that reads what it draws.

    python -m benchmarks.digits.train        both, from the images that scikit-learn ships, into model/

model/ holds what this wrote, so that the tables of images need no training.
"""
