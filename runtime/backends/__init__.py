"""Executors behind the Engine protocol: peers with the same two functions, open_engine and available."""
