"""The embedded engine: generation with transformers models."""
