"""The loop's topics on Apache Kafka: connection, topics, transactions, and the joiner as a service."""
