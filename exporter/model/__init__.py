"""Where a float graph comes from: folders, torch modules, ONNX files, and the samples that feed them."""
