"""The verbs of the command line: `add` puts those of a file there, the functions beside it do them."""
