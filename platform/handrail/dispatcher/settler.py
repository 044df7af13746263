"""Settling in batches: whatever was judged while the broker took the last batch goes to it in the next."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from handrail.adapter import Adapter, Delivery, Settlement, Verb
from handrail.config.model import QueueSettings
from handrail.dispatcher.verdict import Verdict
from handrail.errors import BrokerError
from handrail.logger import get_logger

log = get_logger("handrail")

#: Seconds that a batch may hold up those that gather behind it: one that the broker cannot take now, as under an alarm, must
#: not keep acknowledgements back that would let messages flow.
HELD_UP = 0.25


class Judged:
    """A delivery, its verdict, and what people will want to know of it once it is settled."""

    __slots__ = ("delivery", "queue", "result", "seconds", "slot", "started", "verdict")

    def __init__(
        self,
        delivery: Delivery,
        queue: QueueSettings,
        verdict: Verdict,
        *,
        seconds: float = 0.0,
        result: bytes | None = None,
        started: bool = False,
        slot: int = -1,
    ) -> None:
        self.delivery = delivery
        self.queue = queue
        self.verdict = verdict
        #: How long the handler took.
        self.seconds = seconds
        self.result = result
        #: Whether the handler was called this time.
        self.started = started
        #: Its slot on the board, to be emptied once it is settled; -1: none, or not yet.
        self.slot = slot


#: Told of each judged delivery once its fate is durable; the flag says that the broker refused it (the lease was lost).
Settled = Callable[[Judged, bool], None]


class Settler:
    """The way of all outcomes to one broker. One batch is under way at a time, as long as it gets on; the rest gathers behind."""

    def __init__(self, adapter: Adapter, settled: Settled) -> None:
        self._adapter = adapter
        self._settled = settled
        self._waiting: list[Judged] = []
        #: Takes what gathers; None when nothing does.
        self._task: asyncio.Task[None] | None = None
        #: Whose batch held the others up.
        self._behind: set[asyncio.Task[None]] = set()

    def add(self, judged: Judged) -> None:
        self._waiting.append(judged)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        elif len(self._waiting) == 1:
            asyncio.get_running_loop().call_later(HELD_UP, self._look, self._waiting)

    def _look(self, waiting: list[Judged]) -> None:
        """Let *waiting* go beside the batch that it gathered behind, if that one is still under way."""
        if waiting is self._waiting and waiting and self._task is not None:
            self._behind.add(self._task)
            self._task = asyncio.get_running_loop().create_task(self._run())

    @property
    def busy(self) -> bool:
        return self._task is not None or bool(self._behind)

    async def flushed(self) -> None:
        """Returns when everything added so far is settled."""
        while self.busy:
            await asyncio.wait([*self._behind, *([self._task] if self._task is not None else [])])

    async def _run(self) -> None:
        me = asyncio.current_task()
        try:
            while self._waiting and self._task is me:
                batch, self._waiting = self._waiting, []
                moves = [one for one in batch if one.verdict.verb is not Verb.ACK]
                if moves and len(moves) < len(batch):
                    # what must be stored elsewhere first may take long, and what is done with need not wait for it
                    task = asyncio.get_running_loop().create_task(self._settle(moves))
                    self._behind.add(task)
                    task.add_done_callback(self._behind.discard)
                    batch = [one for one in batch if one.verdict.verb is Verb.ACK]
                await self._settle(batch)
        finally:
            if self._task is me:
                self._task = None
            elif me is not None:
                self._behind.discard(me)

    async def _settle(self, batch: list[Judged]) -> None:
        settlements = [Settlement(one.delivery, one.verdict.verb, one.verdict.message) for one in batch]
        refused: set[int] = set()
        try:
            lost = await self._adapter.settle(settlements)
        except BrokerError as error:
            # only a closed adapter raises; what it held goes back to the queue by its own means
            log.error("not settled", broker=self._adapter.place, messages=len(batch), error=str(error))
            refused.update(range(len(batch)))
        except Exception:  # a fault in an adapter: what gathers behind this batch has to go on
            log.exception("not settled; please report this", broker=self._adapter.place, messages=len(batch))
            refused.update(range(len(batch)))
        else:
            if lost:
                gone = {id(one) for one in lost}
                refused.update(at for at, one in enumerate(settlements) if id(one) in gone)
        for at, one in enumerate(batch):
            try:
                self._settled(one, at in refused)
            except Exception:  # whoever wants to know of one may not keep it from the others
                log.exception("an outcome was settled and could not be told", id=one.delivery.message.id)


def now() -> float:
    """Unix time in seconds: what due times and expiry are counted in, for they cross machines."""
    return time.time()
