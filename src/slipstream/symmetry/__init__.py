"""Which neurons may change places without changing the function, and how they move."""
