"""How well maps and masks do: perturbation, segmentation, mask IoU, the report page."""
