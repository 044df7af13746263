"""What things are called on the cluster. It does no I/O."""

from __future__ import annotations

from handrail.message import DEFAULT_PRIORITY

#: The lowest priority of each level but the default's, whose topic bears the queue's name: 0–1, 2–3, 4, 5–7, 8–9.
LEVELS = (0, 2, DEFAULT_PRIORITY, 5, 8)
#: Seconds that a message waits in each topic of the delays: 2 s to 34 years.
TIERS = tuple(2**k for k in range(1, 31))


class Names:
    """Names of one project, whose prefix goes before all of them."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.delay_group = f"{prefix}handrail.delay"
        #: The topic by which workers are asked to mark messages that only they may mark.
        self.control = f"{prefix}handrail.control"
        #: The topic that remembers which groups have handled messages of which partitions.
        self.register = f"{prefix}handrail.groups"

    def queue(self, name: str) -> str:
        """The topic of a queue's default priority, and of its dead letters when *name* is their place."""
        return self._prefix + name

    def levels(self, name: str) -> dict[int, str]:
        """Topic by the lowest priority in it."""
        return {low: self.level(name, low) for low in LEVELS}

    def level(self, name: str, priority: int) -> str:
        low = max(low for low in LEVELS if low <= priority)
        return self._prefix + (name if low == DEFAULT_PRIORITY else f"{name}.p{low}")

    def tier(self, seconds: int) -> str:
        return f"{self._prefix}handrail.delay.{seconds}s"

    def tier_for(self, remaining: float) -> str:
        """Where a message waits that is due in *remaining* seconds: the longest tier that is not too long."""
        return self.tier(max((tier for tier in TIERS if tier <= remaining), default=TIERS[0]))

    def tiers(self) -> dict[str, int]:
        """Seconds by topic."""
        return {self.tier(tier): tier for tier in TIERS}
