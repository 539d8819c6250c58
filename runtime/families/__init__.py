"""Model families, one file each: what a family's tensors are called and what they mean."""
