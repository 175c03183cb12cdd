"""The joiner: events in, examples out, with its state, its recovery and its service."""
