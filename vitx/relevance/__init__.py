"""Relevance: rules, the bundles made of them, the maps, and `explain`."""
