"""From a file and overrides to checked settings with origins. No torch."""
