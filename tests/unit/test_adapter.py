"""The port's helpers: how a broker's URL is shown, and how its adapter is found."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handrail import adapter
from handrail.adapter import BrokerSettings, load, masked, schemes
from handrail.errors import BrokerError


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://user:secret@host:5672/vhost", "amqp://user:***@host:5672/vhost"),
        ("amqp://user@host/", "amqp://user@host/"),
        ("amqp://host", "amqp://host"),
        ("amqp://:secret@host", "amqp://:***@host"),
        ("amqp://user:se@cret@host/v", "amqp://user:***@host/v"),
        ("amqp://user:se/cret@host/v", "amqp://user:***@host/v"),
        ("amqp://user:a:b@host", "amqp://user:***@host"),
        ("kafka://u:secret@a:9092,b:9092", "kafka://u:***@a:9092,b:9092"),
        ("sqlite:.platform/queues.db", "sqlite:.platform/queues.db"),
        ("sqlite::memory:", "sqlite::memory:"),
        ("user:secret@host", "user:***@host"),
        ("kafka://h:9092?sasl_password=secret&x=1", "kafka://h:9092?sasl_password=***&x=1"),
        ("sqlite:///home/a@b/q.db", "sqlite:///home/a@b/q.db"),
    ],
)
def test_masked(url: str, shown: str) -> None:
    """A URL is shown without its password and otherwise as it was written."""
    assert masked(url) == shown


@given(st.text(alphabet=st.characters(codec="ascii", exclude_characters="\n"), min_size=1, max_size=20))
def test_no_password_is_shown(password: str) -> None:
    """Whatever signs the password holds, escaped or not, none of it is shown."""
    shown = masked(f"amqp://user:{password}@host.example/v")

    assert shown.startswith("amqp://user:***@")
    assert shown.endswith("host.example/v")
    assert shown == "amqp://user:***@host.example/v"


def load_url(url: str) -> None:
    load(BrokerSettings(name="default", url=url, root="/"))


def test_unknown_scheme() -> None:
    """A URL that no adapter serves is refused with those that are served; its password is not shown."""
    with pytest.raises(BrokerError, match=r"no adapter for 'redis://u:\*\*\*@h'; use one of .*sqlite:"):
        load_url("redis://u:secret@h")


def test_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheme that an extra brings names the extra to install."""
    monkeypatch.setitem(adapter.EXTRAS, "carrier", "pigeon")

    with pytest.raises(BrokerError, match=r"no adapter for carrier://; pip install 'handrail\[pigeon\]'"):
        load_url("carrier://coop")


def test_schemes() -> None:
    """The embedded adapter is always there."""
    assert "sqlite" in schemes()
