"""The compose file's services as local processes, for machines without Docker: `make stack`, tests, benchmarks."""
