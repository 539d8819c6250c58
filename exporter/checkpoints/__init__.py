"""Original checkpoints of published models as torch modules: which tensor goes where, and what no file says."""
