"""The joiner: events in, examples out. Also its state, recovery and service."""
