"""Requests, completions, batches and their packing."""
