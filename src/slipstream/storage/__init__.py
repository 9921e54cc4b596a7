"""Files that are there whole or not at all: tensors, packed snapshots, resumable state."""
