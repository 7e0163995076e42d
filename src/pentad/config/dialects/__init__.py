"""Settings of other systems and what they are called here. No torch."""
