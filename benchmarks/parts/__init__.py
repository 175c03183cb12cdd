"""What benchmarks start or share; none is a benchmark by itself."""
