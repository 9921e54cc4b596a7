"""Record a training run's trajectory and make it useful again."""
