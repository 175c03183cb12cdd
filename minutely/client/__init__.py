"""What a product sends records with: on kafka-python, without what services need (docs/client.md)."""

from minutely.client.client import Client
from minutely.client.sender import Lost, NoRoom
from streaming.log import BrokerError
from streaming.records.events import BadRecord

__all__ = ["BadRecord", "BrokerError", "Client", "Lost", "NoRoom"]
