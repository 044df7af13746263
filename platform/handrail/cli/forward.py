"""``platform work --only delays``: moves delayed messages on as they fall due, and runs no handler."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import structlog

from handrail import adapter as port
from handrail.adapter import Adapter
from handrail.config.model import Settings
from handrail.errors import StartError

log: Any = structlog.get_logger("handrail")


async def forward_delays(settings: Settings) -> None:
    """Serve the brokers that need it until told to stop. Raises StartError when there is none, BrokerError as ``open`` does."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, stop.set)
    adapters: dict[str, Adapter] = {}
    others: dict[str, str] = {}
    for name in dict.fromkeys(queue.broker for queue in settings.queues.values()):
        made = port.load(settings.brokers[name])
        if getattr(made, "forwards", False):
            adapters[name] = made
        else:
            others[name] = made.name
    if not adapters:
        raise StartError(
            f"there is nothing to run: {' and '.join(sorted(set(others.values())))} moves delayed messages on without "
            "`--only delays`, which is for Kafka"
        )
    for name, kind in others.items():
        log.info("this broker needs nobody to move delayed messages on", broker=name, kind=kind)
    try:
        for name, made in adapters.items():
            await made.open("forwarder")
            await made.declare([queue.spec for queue in settings.queues.values() if queue.broker == name])
        log.info("ready", only="delays", brokers={name: made.place for name, made in adapters.items()})
        await stop.wait()
    finally:
        for made in adapters.values():
            await made.close()
    log.info("stopped")
