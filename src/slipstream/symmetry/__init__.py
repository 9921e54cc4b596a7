"""Which neurons can be permuted without changing the function, and how they move."""
