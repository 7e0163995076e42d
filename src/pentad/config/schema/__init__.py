"""What may be set: one class a component. No torch."""
