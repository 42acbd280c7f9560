"""Relevance: rules, the rule sets built from them, the maps, and `explain`."""
