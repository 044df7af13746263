"""The order service alone: the shipping service is not needed to know what is sent to it."""


def test_an_order_asks_for_its_shipment(project):
    project.send("orders", {"id": "o-1", "items": ["lamp"], "city": "Oslo"})

    project.run_until_idle()

    [request] = project.sent["shipments"]
    assert request == {"order": "o-1", "items": ["lamp"], "city": "Oslo"}


def test_an_empty_order_is_rejected_at_once(project):
    project.send("orders", {"id": "o-2", "items": [], "city": "Oslo"})

    project.run_until_idle()

    [dead] = project.dead
    assert dead.reason == "order o-2 has no items"
    assert not project.sent["shipments"]


def test_an_order_that_is_no_order_is_a_dead_letter(project):
    project.send("orders", {"id": "o-3"})

    project.run_until_idle()

    [dead] = project.dead
    assert "items" in dead.reason


def test_the_news_of_a_shipment_is_taken(project, capsys):
    project.send("order-shipped", {"order": "o-1", "parcel": "P-0001"})

    project.run_until_idle()

    assert len(project.completed) == 1
    assert "order o-1 is on its way: parcel P-0001" in capsys.readouterr().out
