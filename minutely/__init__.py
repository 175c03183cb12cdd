"""The composition root: configuration and command line; replays, services, and what looks at logs, in folders."""
