"""The deliveries of one channel that the server waits for, and what goes to it with the next acknowledgement."""

from __future__ import annotations

from collections import deque

from handrail_rabbitmq.link import Channel


class Unsettled:
    """Delivery tags of one channel, from their coming until the server has heard of them."""

    __slots__ = ("_acked", "_given_back", "numbers")

    def __init__(self) -> None:
        #: What came, in its order, as far as the first that is neither acknowledged nor given back; more is of no harm.
        self.numbers: deque[int] = deque()
        self._acked: set[int] = set()
        # of these the server has heard, each for itself
        self._given_back: set[int] = set()

    def ack(self, number: int) -> None:
        """Acknowledge it with the next :meth:`flush`."""
        self._acked.add(number)

    def give_back(self, number: int) -> None:
        """The caller tells the server that it has it back."""
        self._given_back.add(number)

    def clear(self) -> None:
        self.numbers.clear()
        self._acked.clear()
        self._given_back.clear()

    def flush(self, channel: Channel) -> None:
        """Send acknowledgements: the longest finished prefix in one, the rest singly. Raises :class:`GoneError`."""
        numbers, acked, given_back = self.numbers, self._acked, self._given_back
        ack = channel.raw.basic_ack
        last = 0
        while numbers and ((first := numbers[0]) in acked or first in given_back):
            numbers.popleft()
            if first in acked:
                acked.discard(first)
                last = first
            else:
                given_back.discard(first)
        if last:
            channel.tell(ack, last, multiple=True)
        if acked:
            for number in acked:
                channel.tell(ack, number)
            # acknowledging twice closes the channel: from here on they are like those that were given back
            given_back |= acked
            acked.clear()
        if len(given_back) * 2 > len(numbers) > 64:
            self.numbers = deque(number for number in numbers if number not in given_back)
            given_back.clear()
