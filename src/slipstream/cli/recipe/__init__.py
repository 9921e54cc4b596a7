"""`slipstream recipe`: ways to train, a file for each."""
