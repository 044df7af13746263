"""What the shipping service does with a request. A plain function: it runs in a thread and may block."""

import time
import zlib
from dataclasses import dataclass

from handrail import context


@dataclass
class Shipment:
    order: str
    items: list[str]
    city: str


def ship(shipment: Shipment, callback):
    time.sleep(0.1)  # packing
    parcel = f"P-{zlib.crc32(shipment.order.encode()) % 10_000:04}"
    print(f"parcel {parcel} with {', '.join(shipment.items)} leaves for {shipment.city}")

    receipt = context.queues.send_to_queue("order-shipped", {"order": shipment.order, "parcel": parcel})
    receipt.wait(timeout=10)  # in a thread, waiting holds up nobody else
    callback()
