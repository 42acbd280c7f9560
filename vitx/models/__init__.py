"""Vision Transformers and hybrids, written over `vitx.ops`."""
