"""Turns weights and calibration into ONNX graphs and engines; holds the recipe, the stage list, the command line."""
