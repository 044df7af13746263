"""Who may do what on a real server: odd credentials and virtual hosts work, and what a user may not do is said at once."""

from __future__ import annotations

import asyncio
import re
import sys
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

# what these tests share is a module of its own, and importmode=importlib puts no folder of tests on the path
sys.path.insert(0, str(Path(__file__).parent))

from rabbitmq_support import Bench, Inbox, messages, until

from handrail.adapter import Settlement, Verb
from handrail.errors import BrokerError, SendError
from real_servers import RabbitMQ

PASSWORD = "p%40@/:#? ä\"'{}$&\\"


@pytest.fixture(scope="module")
def odd(own_rabbitmq: RabbitMQ) -> str:
    """A user and a virtual host, both of that name, which has every character that means something in a URL."""
    own_rabbitmq.up()
    name = "o%d@d/:#? ö+&="
    for words in (
        ("add_vhost", name),
        ("add_user", name, PASSWORD),
        ("set_permissions", "-p", name, name, *[".*"] * 3),
    ):
        done = own_rabbitmq.ctl(*words)
        assert done.returncode == 0, done.stdout + done.stderr
    return name


@pytest.mark.parametrize("way", ["in the URL", "beside the URL"])
async def test_credentials_and_virtual_hosts_may_hold_anything(
    server: RabbitMQ, odd: str, tmp_path: Path, way: str
) -> None:
    """Percent-encoded in the URL or as they are beside it: a user, a password and a virtual host of special characters."""
    options = {}
    if way == "in the URL":
        user, password = (urllib.parse.quote(text, safe="") for text in (odd, PASSWORD))
        url = server.url.replace("guest:guest", f"{user}:{password}") + user
    else:
        url = server.url.replace("guest:guest@", "")
        options = {"username": odd, "password": PASSWORD, "vhost": odd}
    bench = Bench(url, tmp_path)
    try:
        worker = await bench.open(**options)
        inbox = await Inbox(worker).begin(bench.queue, ack=True)
        assert await worker.publish(messages(2), 10.0) == {}
        await until(lambda: len(inbox.handled) == 2, "both")

        listed = server.ctl("-q", "list_queues", "-p", odd, "name").stdout

        assert f"{bench.settings.prefix}work" in listed
        assert PASSWORD not in worker.place
    finally:
        await bench.close()


@pytest.fixture
def user(server: RabbitMQ) -> Iterator[Any]:
    """Makes a user of that name whose rights to configure, write and read are these patterns; its URL."""
    made: list[str] = []

    def make(*rights: str) -> str:
        name = f"u{uuid.uuid4().hex[:8]}"
        made.append(name)
        assert server.ctl("add_user", name, "geheim").returncode == 0
        if rights:
            assert server.ctl("set_permissions", name, *rights).returncode == 0
        return server.url.replace("guest:guest", f"{name}:geheim")

    yield make
    for name in made:
        server.ctl("delete_user", name)


async def served(bench: Bench) -> None:
    worker = await bench.open()
    await Inbox(worker).begin(bench.queue)


@pytest.mark.parametrize(
    ("rights", "text"),
    [
        ((), r"user 'u\w+' may not use the virtual host '/'; .*set_permissions"),
        (("nothing", ".*", ".*"), r"access to queue '\S+work' .*refused for user 'u\w+'; grant it .*set_permissions"),
        ((".*", "nothing", ".*"), r"refused for user 'u\w+'; grant it with rabbitmqctl set_permissions"),
        ((".*", ".*", "nothing"), r"refused for user 'u\w+'; grant it with rabbitmqctl set_permissions"),
        # the worker may read its own unnamed queue and the registry, and not the queue that it is to serve
        ((".*", ".*", r"amq\.gen.*|.*registry"), r"access to queue '\S+work' .*; grant it with rabbitmqctl"),
    ],
    ids=["no rights", "no configure", "no write", "no read", "no read of the queue"],
)
async def test_a_worker_without_rights_ends_with_one_line(
    user: Any, tmp_path: Path, rights: tuple[str, ...], text: str
) -> None:
    """Whatever right a worker lacks, it does not start, and one line names the user, the thing and the command to grant it."""
    bench = Bench(user(*rights), tmp_path)
    try:
        with pytest.raises(BrokerError) as caught:
            await asyncio.wait_for(served(bench), 20)

        said = str(caught.value)
        assert re.search(text, said), said
        assert "\n" not in said
        assert "geheim" not in said
    finally:
        await bench.close()


async def test_a_send_without_the_right_to_write_fails_at_once(user: Any, tmp_path: Path) -> None:
    """The receipt names what is refused long before `send_timeout`, the log tells once, and what is allowed still works."""
    bench = Bench(user(".*", "nothing", ".*"), tmp_path)
    try:
        sender = await bench.open("client")
        with structlog.testing.capture_logs() as logs:
            async with asyncio.timeout(30):
                first = await sender.publish(messages(3), 60.0)
                second = await sender.publish(messages(1), 60.0)

        assert sorted(first) == [0, 1, 2]
        for error in (*first.values(), *second.values()):
            assert isinstance(error, SendError)
            assert re.search(r"access to exchange 'amq.default' .*refused for user .*; grant it with", str(error))
        assert len([line for line in logs if line["event"].startswith("publishing channel closed")]) == 1
        assert (await sender.depth("work")).ready == 0
    finally:
        await bench.close()


async def test_a_right_withdrawn_is_told_and_granted_again_goes_on(server: RabbitMQ, user: Any, tmp_path: Path) -> None:
    """A running worker that may no longer read says so once and in its health, and serves again when it may."""
    url = user(".*", ".*", ".*")
    name = re.findall(r"//(\w+):", url)[0]
    bench = Bench(url, tmp_path)
    try:
        worker = await bench.open()
        inbox = await Inbox(worker).begin(bench.queue, ack=True)
        with structlog.testing.capture_logs() as logs:
            assert server.ctl("set_permissions", name, ".*", ".*", "nothing").returncode == 0
            assert server.ctl("close_all_user_connections", name, "for the test").returncode == 0
            await until(lambda: "grant it with" in worker.health().detail, "its health tells")
            assert not worker.health().up
            assert server.ctl("set_permissions", name, ".*", ".*", ".*").returncode == 0
            await until(lambda: worker.health().up, "it is up again")
        assert await worker.publish(messages(1), 10.0) == {}
        await until(lambda: len(inbox.handled) == 1, "the message")

        [refusal] = [line for line in logs if line["log_level"] == "error"]
        assert refusal["event"] == "cannot subscribe"
        assert "grant it with" in refusal["reason"]
    finally:
        await bench.close()


async def test_the_rights_of_the_documentation_are_enough(server: RabbitMQ, user: Any, tmp_path: Path) -> None:
    """On the names with the prefix, `amq.gen…` and, to write, `amq.default`: priorities, delays and dead letters all work."""
    bench = Bench(server.url, tmp_path)
    own = rf"{bench.settings.prefix}.*|amq\.gen.*"
    bench.settings = msgspec.structs.replace(
        bench.settings, url=user(f"^({own})$", rf"^({own}|amq\.default)$", f"^({own})$")
    )
    try:
        worker = await bench.open()
        inbox = await Inbox(worker).begin(bench.queue)
        assert await worker.publish(messages(1, priority=9) + messages(1, due=time.time() + 0.1), 10.0) == {}
        await until(lambda: len(inbox.got) == 2, "both")
        buried, interrupted = inbox.got
        verdicts = [
            Settlement(buried, Verb.DEAD, buried.message),
            Settlement(interrupted, Verb.RELEASE, interrupted.message),
        ]

        assert await worker.settle(verdicts) == []

        await until(lambda: len(inbox.got) == 3, "the interrupted one")
        assert len(await worker.peek("work", "dead", 10)) == 1
        assert worker.health().up
    finally:
        await bench.close()
