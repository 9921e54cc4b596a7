"""The small real data sets and networks of the demo, the tests and the benchmarks."""
