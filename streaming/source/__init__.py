"""Own logs: `load` reads `files`, makes `rows` of them, puts these in `order`, and returns `logged_events`; then come records."""
