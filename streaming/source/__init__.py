"""Own logs and data sets: reading them, and making records of them."""
