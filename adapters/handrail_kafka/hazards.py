"""Settings of a topic under which confirmed messages get lost, each with what it ought to be. It changes none."""

from __future__ import annotations

from collections.abc import Mapping


def hazards(settings: Mapping[str, str | None], copies: int) -> list[str]:
    """What in *settings* of a topic with so many *copies* loses messages, one line each; empty when nothing does."""
    found = []
    for name in ("retention.ms", "retention.bytes"):
        value = settings.get(name) or "-1"
        if value != "-1":
            found.append(f"{name}={value}: deletes messages that were not handled; set -1")
    policy = settings.get("cleanup.policy") or "delete"
    if "compact" in policy:
        found.append(f"cleanup.policy={policy}: of messages with one key all but the last go; set delete")
    if copies > 1:
        if settings.get("min.insync.replicas") == "1":
            found.append("min.insync.replicas=1: a message is confirmed when one server has it; set 2")
        if settings.get("unclean.leader.election.enable") == "true":
            found.append("unclean.leader.election.enable=true: a server that missed messages may take over; set false")
    return found
