"""Training: the loop, checkpoints, and the stages that make models."""
