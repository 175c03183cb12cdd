"""The loop that services share: partitions of a group, each read, worked on and committed in transactions."""
