"""Ways for weights from trainer to engines."""
