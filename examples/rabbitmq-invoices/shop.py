"""A shop system that knows nothing of handrail: it puts plain JSON into a queue of RabbitMQ, here with pika alone."""

import json
import os
import sys

import pika


def main(queue: str, order: str) -> None:
    parameters = pika.URLParameters(os.environ.get("RABBITMQ_URL", "amqp://127.0.0.1:5672"))
    parameters.credentials = pika.PlainCredentials(
        os.environ.get("RABBITMQ_USER", "shop"), os.environ.get("RABBITMQ_PASSWORD", "on-loopback-only")
    )
    parameters.virtual_host = os.environ.get("RABBITMQ_VHOST", "shop")
    connection = pika.BlockingConnection(parameters)
    channel = connection.channel()
    channel.confirm_delivery()
    # persistent, confirmed, and an error where no such queue is: then it is as safe as what handrail sends
    properties = pika.BasicProperties(message_id=json.loads(order)["id"], delivery_mode=2)
    channel.basic_publish("", queue, order.encode(), properties, mandatory=True)
    connection.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
