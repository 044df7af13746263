"""The shipping service alone."""


def test_a_shipment_is_announced(project):
    project.send("shipments", {"order": "o-1", "items": ["lamp"], "city": "Oslo"})

    project.run_until_idle()

    [news] = project.sent["order-shipped"]
    assert news["order"] == "o-1"
    assert news["parcel"].startswith("P-")
