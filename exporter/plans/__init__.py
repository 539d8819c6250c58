"""What TensorRT makes of a graph: what GPUs can, the builder in its process, its log, and what it says."""
