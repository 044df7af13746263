"""How senders learn what became of a message."""

from __future__ import annotations

import asyncio
import gc
import queue as stdlib_queue
import threading
import time

import pytest
import structlog
import structlog.testing

from handrail import context
from handrail.errors import SendError

send = context.queues.send_to_queue
send_bulk = context.queues.send_bulk


def until(condition, timeout=30.0):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        time.sleep(0.005)


def test_wait_gives_up_after_its_timeout_and_the_send_goes_on(broker):
    """A wait that times out raises TimeoutError and changes nothing for the message."""
    broker.flowing.clear()
    receipt = send("email", 1)
    with pytest.raises(TimeoutError, match=r"has not confirmed within 0.02s; the send goes on"):
        receipt.wait(0.02)

    assert not receipt.done
    assert receipt.error is None
    assert "on its way" in repr(receipt)
    broker.flowing.set()
    receipt.wait(30)
    assert "sent" in repr(receipt)


def test_wait_raises_why_it_failed(broker):
    """A refused send raises its error from wait, each time, and carries it."""
    broker.refuse = lambda _: SendError("no room")
    receipt = send("email", 1)
    for _ in range(2):
        with pytest.raises(SendError, match="no room"):
            receipt.wait(30)
    assert str(receipt.error) == "no room"
    assert "failed: no room" in repr(receipt)


def test_many_threads_may_wait(broker):
    """Any number of threads may wait for one receipt."""
    broker.flowing.clear()
    receipt = send("email", 1)
    ended = []
    threads = [threading.Thread(target=lambda: ended.append(receipt.wait(30))) for _ in range(8)]
    for thread in threads:
        thread.start()
    broker.flowing.set()
    for thread in threads:
        thread.join(30)
    assert ended == [None] * 8


def test_await_in_any_loop(broker):
    """A receipt can be awaited in several event loops, before and after it is done."""
    receipt = send("email", 1)

    async def twice():
        await receipt
        await receipt
        return True

    assert asyncio.run(twice())
    assert asyncio.run(twice())


def test_await_raises_the_error_and_can_be_cancelled(broker):
    """Awaiting gives up on a timeout without harm, and raises the send's own error."""

    async def main():
        broker.flowing.clear()
        receipt = send("email", 1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(receipt, 0.02)
        broker.refuse = lambda _: SendError("no room")
        broker.flowing.set()
        with pytest.raises(SendError, match="no room"):
            await receipt

    asyncio.run(main())


def test_sending_never_blocks_the_loop(broker):
    """While the broker stands still, a loop that sends and awaits goes on turning."""

    async def main():
        broker.flowing.clear()
        waiting = asyncio.gather(*(send("email", n) for n in range(50)))
        turns = 0
        for _ in range(20):
            await asyncio.sleep(0.002)
            turns += 1
        assert not waiting.done()
        broker.flowing.set()
        await waiting
        return turns

    assert asyncio.run(main(), debug=True) == 20
    assert [message.body for message in broker.stored] == [str(n).encode() for n in range(50)]


def test_a_loop_that_ended_harms_nobody(broker):
    """A receipt whose waiter's loop is closed by then still settles, and the next send works."""
    broker.flowing.clear()
    receipt = send("email", 1)

    async def start():
        task = asyncio.ensure_future(_awaiting(receipt))
        await asyncio.sleep(0.01)
        task.cancel()

    async def _awaiting(what):
        await what

    asyncio.run(start())
    broker.flowing.set()
    receipt.wait(30)
    send("email", 2).wait(30)


def test_the_callback_is_called_once_on_a_thread_of_its_own(broker):
    """The callback gets None exactly once, away from the sender's thread and the publisher's."""
    told = []
    receipt = send("email", 1, lambda error: told.append((error, threading.current_thread().name)))
    receipt.wait(30)
    assert context.queues.flush(30)

    assert told == [(None, "handrail-callbacks")]
    assert broker.threads == {"handrail-publisher"}


def test_callbacks_come_in_the_order_of_the_sends(broker):
    """Callbacks of one queue's messages are called in the order in which they were sent."""
    told = []
    for number in range(200):
        send("email", number, lambda _error, number=number: told.append(number))
    assert context.queues.flush(30)

    assert told == list(range(200))


@pytest.mark.parametrize("error", [ValueError("mine"), SystemExit(3), KeyboardInterrupt()])
def test_a_callback_that_raises_harms_nothing(broker, caplog, error):
    """What a callback raises is logged with its traceback, and the sends go on."""

    def explode(_error):
        raise error

    told: stdlib_queue.Queue[object] = stdlib_queue.Queue()
    send("email", 1, explode)
    send("email", 2, told.put)

    assert told.get(timeout=30) is None
    (record,) = [r for r in caplog.records if "the callback of a send raised" in r.getMessage()]
    assert "explode" in record.message
    assert record.exc_info[1] is error


def test_a_callback_that_blocks_holds_up_no_send(broker):
    """While a callback blocks, messages are still sent and receipts still done."""
    gate = threading.Event()
    send("email", 1, lambda _error: gate.wait(10)).wait(30)
    send("email", 2).wait(30)
    assert not context.queues.flush(0.05)

    gate.set()
    assert context.queues.flush(30)


def test_a_callback_may_send(broker):
    """A callback may send, wait for that send, and even flush, without locking itself up."""
    ended = threading.Event()

    def again(_error):
        send("email", 2).wait(30)
        context.queues.flush(30)
        ended.set()

    send("email", 1, again)
    assert ended.wait(30)
    assert [message.body for message in broker.stored] == [b"1", b"2"]


def unseen(caplog):
    return [record.getMessage() for record in caplog.records if "nobody looked" in record.getMessage()]


def test_a_failure_nobody_looks_at_is_logged_once_for_many(broker, caplog):
    """Failures whose receipts were thrown away are told in one line that counts them."""
    broker.refuse = lambda _: SendError("no room")
    for number in range(30):
        send("email", number)
    send_bulk("email", range(12))
    assert context.queues.flush(30)
    gc.collect()

    # receipts that others threw away may be found only now
    def told():
        return [line for line in unseen(caplog) if "no room" in line]

    def count():
        return sum(int(line.split()[0].replace("a", "1")) for line in told())

    until(lambda: context.queues.flush(30) and count() >= 42)
    lines = told()
    assert any("queue='email'" in line for line in lines)
    assert count() == 42
    assert len(lines) < 10


def _error_of(receipt):
    until(lambda: receipt.done)
    return receipt.error


def test_a_failure_somebody_saw_is_not_logged(broker, caplog):
    """Whoever waits, awaits, reads the error or gives a callback has seen it."""
    broker.refuse = lambda _: SendError("no room for what is seen")

    async def awaiting():
        with pytest.raises(SendError):
            await send("email", 1)

    asyncio.run(awaiting())
    with pytest.raises(SendError):
        send("email", 1).wait(30)
    send("email", 1, lambda _error: None)
    assert _error_of(send("email", 1)) is not None
    assert context.queues.flush(30)
    gc.collect()
    assert context.queues.flush(30)

    # receipts that others threw away may be found only now
    assert [line for line in unseen(caplog) if "what is seen" in line] == []


def test_an_application_s_structlog_gets_the_failures(broker):
    """Where the application has set structlog up, failures are logged through it."""
    broker.refuse = lambda _: SendError("no room in here")
    capture = structlog.testing.LogCapture()
    structlog.configure(processors=[capture])
    send("email", 1)

    # receipts that others threw away may be found only now
    def entries():
        return [entry for entry in capture.entries if entry.get("error") == "no room in here"]

    until(lambda: context.queues.flush(30) and entries())

    (entry,) = entries()
    assert (entry["log_level"], entry["queue"]) == ("error", "email")
