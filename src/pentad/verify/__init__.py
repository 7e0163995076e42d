"""Proof on the spot that a model computes the same on every layout."""
