"""RabbitMQ for handrail, through pika. It re-exports the adapter and holds no code."""

from __future__ import annotations

from handrail_rabbitmq.adapter import RabbitMQAdapter

__all__ = ["RabbitMQAdapter"]
