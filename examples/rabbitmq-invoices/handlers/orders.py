"""What becomes of an order that some shop system put into the queue, in whatever language that is written."""

from dataclasses import dataclass

from handrail import context


@dataclass
class Order:
    id: str
    customer: str
    total: float
    express: bool = False


# an order that does not fit is a dead letter with the reason: `platform dead list orders`
async def accept(order: Order, callback):
    invoice = {"order": order.id, "customer": order.customer, "total": order.total}
    # on RabbitMQ too 9 goes first; 4 is usual
    await context.queues.send_to_queue("invoices", invoice, priority=9 if order.express else 4)
    # stays on the server until then, whoever restarts meanwhile
    await context.queues.send_to_queue("reminders", invoice, delay="14d")
    print(f"order {order.id} accepted")
    callback()
