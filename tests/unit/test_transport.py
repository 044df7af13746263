"""The slot for the way a process sends."""

from __future__ import annotations

import os

from handrail import transport


class _Some:
    settings = None

    def submit(self, messages, done): ...

    def flush(self, timeout):
        return True


def test_one_transport_at_a_time():
    """What was installed last is the way to send; None takes it away."""
    assert transport.current() is None
    some = _Some()
    transport.install(some)
    try:
        assert transport.current() is some
    finally:
        transport.install(None)
    assert transport.current() is None


def test_a_forked_child_starts_without():
    """A forked child does not send through its parent's transport, whose pipe it would share."""
    transport.install(_Some())
    try:
        pid = os.fork()
        if not pid:
            os._exit(0 if transport.current() is None else 1)
        _, status = os.waitpid(pid, 0)
    finally:
        transport.install(None)
    assert os.waitstatus_to_exitcode(status) == 0
