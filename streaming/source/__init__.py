"""Own logs and data sets: reads them and turns them into records."""
