"""Faults on purpose: `make faults`. Apart from the tests, for they take a quarter of an hour."""
