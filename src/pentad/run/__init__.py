"""From settings to processes, loop and export."""
