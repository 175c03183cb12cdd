"""The composition root: command line, configuration, and the embedded loop."""
