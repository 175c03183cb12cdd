"""What the topics hold: events, labels, examples, and JSON in place of events."""
