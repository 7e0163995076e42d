"""What a run writes and shows: run directory, metrics, samples, report, terminal."""
