"""One operation a file, each with its plain PyTorch version."""
