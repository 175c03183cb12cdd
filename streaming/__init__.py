"""Events in, examples out: event types, the log, the joiner, and where logged events come from."""
