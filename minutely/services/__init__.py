"""The services on Kafka, and the commands that look after what they publish and refuse."""
