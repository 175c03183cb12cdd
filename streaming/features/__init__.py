"""From values of files, JSON and requests to columns of features."""
