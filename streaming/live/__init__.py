"""Live features: counts, rates and times by key, that the loop keeps from what happens."""
