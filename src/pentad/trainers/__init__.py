"""Training on one rank."""
