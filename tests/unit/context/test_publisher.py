"""The background publisher: order, bounds, deadlines, and brokers that misbehave."""

from __future__ import annotations

import queue as stdlib_queue
import signal
import threading
import time

import msgspec
import pytest

from handrail import context
from handrail.adapter import BrokerSettings
from handrail.config.model import QueueSettings
from handrail.context import process
from handrail.errors import BrokerError, BufferFullError, SendError, SendTimeoutError

send = context.queues.send_to_queue
send_bulk = context.queues.send_bulk


def hold(broker):
    """Have the broker take a first message and no other, so that what follows waits in the buffer."""
    broker.flowing.clear()
    first = send("email", "first")
    while not broker.entered.wait(0.02):
        if first.error is not None:  # this machine stood still: its time was over before it was taken
            first = send("email", "first")
    return first


def test_what_gathers_goes_in_one_batch(broker):
    """Messages that gather while the broker is busy are published together, in their order."""
    hold(broker)
    receipts = [send("email", number) for number in range(300)]
    broker.flowing.set()
    for receipt in receipts:
        receipt.wait(30)

    assert broker.batches == [1, 300]
    assert [message.body for message in broker.stored[1:]] == [str(n).encode() for n in range(300)]


def test_each_thread_keeps_its_order(broker):
    """Threads that send at once each find their own messages in their own order."""

    def work(name):
        for number in range(100):
            send("email", [name, number])

    threads = [threading.Thread(target=work, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert context.queues.flush(30)

    sent = [msgspec.json.decode(message.body) for message in broker.stored]
    assert len(sent) == 600
    for name in range(6):
        assert [number for sender, number in sent if sender == name] == list(range(100))


def test_one_connection_is_opened_and_only_when_something_is_sent(broker):
    """Importing and configuring opens nothing; the first send opens the broker once for the process."""
    assert broker.opened == 0
    for number in range(5):
        send("email", number).wait(30)
    assert broker.opened == 1


def test_large_bulks_are_published_in_parts(broker, use, monkeypatch):
    """A bulk is published in batches bounded by count and by bytes, in order."""
    from handrail.context import publisher

    monkeypatch.setattr(publisher, "BATCH_MESSAGES", 40)
    monkeypatch.setattr(publisher, "BATCH_BYTES", 3000)
    sizes = [10] * 100 + [1000] * 10 + [5000, 5000]
    send_bulk("email", [f"{n:04}" + "x" * size for n, size in enumerate(sizes)]).wait(30)

    assert [int(message.body[1:5]) for message in broker.stored] == list(range(len(sizes)))
    assert sum(broker.batches) == len(sizes)
    assert max(broker.batches) <= 40
    assert broker.batches[-2:] == [1, 1]


def test_the_buffer_is_bounded(broker):
    """With send_buffer messages waiting, a further one fails at once: the receipt says so and nothing is raised."""
    first = hold(broker)
    rest = send_bulk("email", range(999))
    over = send("email", "over")

    assert over.done
    assert isinstance(over.error, BufferFullError)
    assert "1,000 of 1,000 messages wait for the broker" in str(over.error)
    broker.flowing.set()
    first.wait(30)
    rest.wait(30)
    send("email", "again").wait(30)
    assert len(broker.stored) == 1001


def test_who_hears_that_it_is_stored_may_send_the_next(broker, use):
    """A message that is confirmed takes no room in the buffer any more when its sender is told."""
    use(send_buffer=1)
    told = []

    def next_one(error):
        told.append(error)
        if len(told) < 50:
            send("email", len(told), next_one)

    send("email", 0, next_one)
    end = time.monotonic() + 30
    while len(told) < 50 and time.monotonic() < end:
        time.sleep(0.01)

    assert told == [None] * 50


def test_a_bulk_beyond_the_buffer_is_refused_whole(broker):
    """A bulk that can never fit says: send it in parts."""
    receipt = send_bulk("email", range(1001))

    assert isinstance(receipt.error, BufferFullError)
    assert "1,001 messages at once are more than send_buffer (1,000); send them in parts" in str(receipt.error)
    assert broker.stored == []


def test_the_timeout_counts_from_the_send_and_names_the_broker_s_state(broker, use):
    """What the broker did not take within send_timeout fails, with its state and without its password."""
    use(send_timeout=2.0)
    broker.obedient = False  # what was sent before holds it up until this one's time is over
    hold(broker)
    told: stdlib_queue.Queue[object] = stdlib_queue.Queue()
    began = time.monotonic()
    receipt = send("email", 1, told.put)
    error = told.get(timeout=30)

    assert time.monotonic() - began >= 1.9
    assert isinstance(error, SendTimeoutError)
    assert receipt.error is error
    assert "within 2s: memory alarm: the broker blocks publishers" in str(error)
    assert "memory://user:***@here/" in str(error)
    assert "secret" not in str(error)
    broker.flowing.set()
    use(send_timeout=60.0)
    send("email", 2).wait(30)
    assert b"1" not in [message.body for message in broker.stored]


def test_an_adapter_that_never_returns_is_replaced(broker, use):
    """A publish that ignores its timeout is given up, its messages fail, and the next send gets a fresh adapter."""
    use(send_timeout=0.1)
    broker.obedient = False
    first = hold(broker)
    with pytest.raises(SendTimeoutError, match=r"did not confirm within 100ms.*it may or may not have it"):
        first.wait(30)
    broker.flowing.set()
    use(send_timeout=60.0)
    send("email", 2).wait(30)
    assert broker.opened == 2
    assert broker.closed >= 1


def test_a_broker_that_comes_late_gets_everything(broker):
    """While the broker cannot be reached, sends wait for it; what it is sent in the end is complete and in order."""
    tries = []

    def refuse():
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise ConnectionRefusedError("connection refused")

    broker.on_open = refuse
    receipts = [send("email", number) for number in range(10)]
    for receipt in receipts:
        receipt.wait(30)

    assert len(tries) == 3
    assert [message.body for message in broker.stored] == [str(n).encode() for n in range(10)]


def test_a_broker_that_never_comes_is_named(broker, use):
    """When the broker cannot be reached within send_timeout, the error says why."""
    use(send_timeout=0.3)

    def refuse():
        raise ConnectionRefusedError("connection refused")

    broker.on_open = refuse
    while not broker.opened:
        with pytest.raises(SendTimeoutError):
            send("email", 0).wait(30)
    with pytest.raises(SendTimeoutError, match="took nothing within 300ms: ConnectionRefusedError: connection refused"):
        send("email", 1).wait(30)


def test_a_refusal_that_waiting_cannot_mend_is_told_at_once(broker, monkeypatch):
    """A wrong password fails the sends at once, in the adapter's words."""
    from handrail.context import publisher

    monkeypatch.setattr(publisher, "_REFUSED", 3600.0)

    def refuse():
        raise BrokerError("broker 'default': access refused for user 'user'")

    broker.on_open = refuse
    for _ in range(3):
        receipt = send("email", 1)
        with pytest.raises(SendError, match="access refused for user 'user'"):
            receipt.wait(30)
    assert broker.opened == 1


def test_an_adapter_that_breaks_fails_its_batch_alone(broker, caplog):
    """An unexpected error of an adapter fails the messages it had, is logged, and the next send works."""

    def explode(message):
        if message.body == b'"bad"':
            raise ZeroDivisionError("a bug")

    broker.refuse = explode
    with pytest.raises(SendError, match="ZeroDivisionError: a bug"):
        send("email", "bad").wait(30)
    send("email", "good").wait(30)

    assert [message.body for message in broker.stored] == [b'"good"']
    assert any("an adapter failed to publish" in record.getMessage() for record in caplog.records)


def test_queues_may_live_on_different_brokers(broker, use):
    """Each queue's messages go to its own broker, and a bulk over a slow one holds up no other."""
    use(
        brokers={name: BrokerSettings(name, f"memory://{name}/", "/project") for name in ("default", "other")},
        queues={"email": QueueSettings("email", None), "there": QueueSettings("there", None, broker="other")},
    )
    send("email", 1).wait(30)
    send("there", 2).wait(30)

    assert broker.opened == 2
    assert [(m.queue, m.body) for m in broker.stored] == [("email", b"1"), ("there", b"2")]
    assert sorted(broker.declared) == ["email", "there"]


def test_a_queue_that_hangs_holds_up_no_other(broker):
    """While one queue confirms nothing, what is sent to the others of its broker arrives, in order."""
    broker.stuck.add("email")
    hanging = [send("email", number) for number in range(3)]
    mixed = send_bulk("Reports", range(3))
    mixed.wait(30)
    for number in range(3, 50):
        send("Reports", number).wait(30)

    assert [message.body for message in broker.messages("Reports")] == [str(n).encode() for n in range(50)]
    assert not any(receipt.done for receipt in hanging)
    broker.stuck.clear()
    for receipt in hanging:
        receipt.wait(30)
    assert [message.body for message in broker.messages("email")] == [b"0", b"1", b"2"]
    assert broker.opened == 1


def test_a_queue_that_hangs_fails_its_own_sends_alone(broker, use):
    """The sends to a queue that confirms nothing fail after send_timeout; those to another, made with them, do not."""
    use(send_timeout=0.5)
    broker.stuck.add("email")
    hanging = send("email", "hangs")
    with pytest.raises(SendError, match="not confirmed in time"):
        hanging.wait(30)
    use(send_timeout=60.0)
    hanging, other = send("email", "hangs"), send("Reports", 1)
    other.wait(30)
    assert not hanging.done
    broker.stuck.clear()


def test_flush_waits_for_what_was_sent_before_it(broker):
    """flush returns whether everything sent so far met its fate in time."""
    assert context.queues.flush(0)
    hold(broker)
    assert not context.queues.flush(0.02)
    broker.flowing.set()
    assert context.queues.flush(30)
    assert len(broker.stored) == 1


def test_other_settings_flush_the_old_ones_first(broker, use):
    """configure() loses nothing that was sent by the settings before."""
    receipts = [send("email", number) for number in range(100)]
    use(send_timeout=30.0)
    assert all(receipt.done for receipt in receipts)
    assert len(broker.stored) == 100
    assert broker.closed == 1


def test_a_closed_publisher_says_so(broker):
    """A send by a publisher that was closed fails in words instead of being lost."""
    send("email", 1).wait(30)
    old = process.current()
    context.configure()
    with pytest.raises(SendError, match="nothing more is sent here"):
        old.submit([], lambda _errors: None)


def test_a_signal_handler_may_send(broker, use):
    """A send from a signal handler, at whatever instant it strikes, neither deadlocks nor is lost."""
    use(send_buffer=1_000_000)
    count = [0]

    def handler(_number, _frame):
        count[0] += 1
        send("email", "signal")

    send("email", "first").wait(30)
    broker.stored.clear()
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        receipts = []
        for number in range(400):
            receipts.append(send("email", number))
            if number % 100 == 99:
                assert context.queues.flush(30)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert context.queues.flush(30)
    assert len(broker.stored) == 400 + count[0]
    assert [m.body for m in broker.stored if m.body != b'"signal"'] == [str(n).encode() for n in range(400)]
