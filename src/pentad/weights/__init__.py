"""Hugging Face tensors: files, rules, checksums, and how they travel."""
