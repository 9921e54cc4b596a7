"""One training run, on disk and in memory."""
