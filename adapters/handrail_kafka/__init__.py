"""Apache Kafka as a broker of handrail. It re-exports the adapter and holds no code."""

from __future__ import annotations

from handrail_kafka.adapter import KafkaAdapter

__all__ = ["KafkaAdapter"]
