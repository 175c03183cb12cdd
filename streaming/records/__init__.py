"""The records of the topics: events, labels, examples, and JSON in place of events."""
