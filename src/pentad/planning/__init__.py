"""Memory, cost and plans of layouts. No torch."""
