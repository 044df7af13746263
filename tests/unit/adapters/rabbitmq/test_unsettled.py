"""Each delivery is acknowledged once, in as few frames as may be, and what went back never."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from handrail_rabbitmq.unsettled import Unsettled


class Server:
    """What the server makes of the frames on one channel: what it still waits for, in order; it knows no other."""

    def __init__(self) -> None:
        self.waits: list[int] = []
        self.acked: list[int] = []
        self.frames = 0
        self.raw = self

    def basic_ack(self, number: int, *, multiple: bool = False) -> None:
        assert number in self.waits
        self.frames += 1
        for one in [one for one in self.waits if one == number or (multiple and one < number)]:
            self.waits.remove(one)
            self.acked.append(one)

    def tell(self, method: Any, *arguments: Any, **options: Any) -> None:
        method(*arguments, **options)


def test_a_run_that_is_finished_goes_in_one_frame() -> None:
    """A hundred, settled in any order, are one acknowledgement; what is behind a gap goes by itself."""
    server, unsettled = Server(), Unsettled()
    for number in range(1, 103):
        server.waits.append(number)
        unsettled.numbers.append(number)
    for number in [*range(100, 0, -1), 102]:
        unsettled.ack(number)

    unsettled.flush(server)  # type: ignore[arg-type]

    assert (server.frames, server.waits) == (2, [101])


@given(st.lists(st.tuples(st.sampled_from(["come", "ack", "give back", "flush"]), st.integers(0, 300)), max_size=200))
def test_each_is_acknowledged_once_and_what_went_back_never(steps: list[tuple[str, int]]) -> None:
    """Whatever comes, ends and goes back in whatever order, the server hears of each what is true of it."""
    server, unsettled = Server(), Unsettled()
    came, held, done, back = 0, [], set(), set()
    for step, choice in [*steps, ("flush", 0)]:
        if step == "come":
            for _ in range(1 + choice % 100):
                came += 1
                held.append(came)
                server.waits.append(came)
                unsettled.numbers.append(came)
        elif step == "flush":
            unsettled.flush(server)  # type: ignore[arg-type]
            assert set(server.acked) == done
        elif held:
            number = held.pop(choice % len(held))
            if step == "ack":
                unsettled.ack(number)
                done.add(number)
            else:
                server.waits.remove(number)
                unsettled.give_back(number)
                back.add(number)

    assert sorted(server.acked) == sorted(done)
    assert server.waits == held
    assert not set(server.acked) & back
