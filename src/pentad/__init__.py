"""Pentad."""
