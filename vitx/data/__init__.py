"""Datasets, image transforms and loaders."""
