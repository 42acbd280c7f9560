"""Measurements that docs/ quotes; each says its command."""
