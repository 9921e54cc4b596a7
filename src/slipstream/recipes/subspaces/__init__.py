"""Lines, curves and simplices of networks trained in one run."""
