"""The loop's topics on Apache Kafka: connection, topics, transactions, group membership and sending."""
