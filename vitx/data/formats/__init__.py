"""The files that datasets are published in."""
