"""What the order service does with an order, and with the news that it was shipped."""

from dataclasses import dataclass

from handrail import Reject, context


@dataclass
class Order:
    id: str
    items: list[str]
    city: str


@dataclass
class Shipped:
    order: str
    parcel: str


async def accept(order: Order, callback):
    if not order.items:
        # no retry can fill an empty order: to the dead letters with it, now
        callback(Reject(f"order {order.id} has no items"))
        return

    # the order's id is the shipment's: should we be stopped between this line and callback(), this handler runs again,
    # and the second request is dropped as a duplicate
    receipt = context.queues.send_to_queue(
        "shipments", {"order": order.id, "items": order.items, "city": order.city}, id=f"shipment:{order.id}"
    )
    await receipt  # acknowledge the order only once the request for its shipment is safe
    print(f"order {order.id} accepted")
    callback()


async def shipped(news: Shipped, callback):
    print(f"order {news.order} is on its way: parcel {news.parcel}")
    callback()
