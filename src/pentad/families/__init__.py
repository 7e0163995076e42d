"""Model architectures as data. No torch."""
