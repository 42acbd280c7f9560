"""Training: one `fit`, the optimiser, and Orbax checkpoints."""
