"""Isolated processes for users' code, such as rewards and tools."""
