"""Which redelivery is that of a message whose handler still runs here."""

from __future__ import annotations

from collections.abc import Callable

from handrail.adapter import Delivery
from handrail.message import Message, new_id
from handrail_rabbitmq.aging import Astray


def test_only_a_message_whose_id_is_its_own_comes_back_to_its_handler() -> None:
    """What the server took back is awaited by its name; what shares an id with others is lost at once, and runs anew."""
    lost: list[Delivery] = []
    timers: list[tuple[Callable[..., object], list[Delivery]]] = []
    astray = Astray(lambda _seconds, call, deliveries: timers.append((call, deliveries)), lost.extend)
    ours, foreign = (Delivery(Message(queue="work", id="1", body=b"", send=send), None) for send in (new_id(), ""))

    astray.add([ours, foreign])

    assert lost == [foreign]
    assert astray.back(Message(queue="work", id="1", body=b"")) is None
    assert astray.back(Message(queue="work", id="1", body=b"", send=new_id())) is None
    assert astray.back(ours.message) is ours
    assert not astray
    [(expire, awaited)] = timers
    expire(awaited)
    assert lost == [foreign]
