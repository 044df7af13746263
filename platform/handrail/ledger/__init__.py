"""Opens the ledger that queues.yaml names. The port is in ``port``; which database carries it, nobody above may know."""

from __future__ import annotations

from handrail.adapter import masked
from handrail.config.model import Settings
from handrail.errors import BrokerError
from handrail.ledger.port import CANCELLATION_KEPT, FINISHED_KEPT, HELD_KEPT, Cancelling, Ledger, Record
from handrail.ledger.sqlite import SQLiteLedger

__all__ = ["CANCELLATION_KEPT", "FINISHED_KEPT", "HELD_KEPT", "Cancelling", "Ledger", "Record", "open_ledger"]


def open_ledger(settings: Settings) -> Ledger | None:
    """The ledger of *settings*, not opened yet, or None when it is ``off``. Raises :class:`BrokerError` for another kind."""
    if settings.ledger is None:
        return None
    scheme, colon, rest = settings.ledger.partition(":")
    if scheme.lower() != "sqlite" or not colon or not rest:
        raise BrokerError(f"ledger {masked(settings.ledger)!r}: write sqlite:PATH, or off for none")
    return SQLiteLedger.at(rest, settings.root)
