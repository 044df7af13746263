"""``python -m handrail.host FD``: a host in a process of its own, started by a dispatcher. Of no use to people."""

from __future__ import annotations

import asyncio
import socket
import sys

from handrail import logs
from handrail.host import process
from handrail.host.main import Host
from handrail.pipe import Batch, SocketPipe, ToHost

#: Seconds that exit functions and threads of users get after the host itself is done.
EXIT = 3.0


class _Child:
    """The host and its socket, until one of them ends."""

    def __init__(self) -> None:
        self._host: Host | None = None
        self._ending = False

    async def live(self, sock: socket.socket) -> None:
        pipe = await SocketPipe.connect(sock, self._receive, self._lost)
        self._host = Host(pipe, in_process=False)
        await self._host.run()
        self._ending = True
        pipe.close()

    def _receive(self, batch: Batch) -> None:
        assert self._host is not None  # made in the very step in which the pipe was connected
        for message in batch:
            if message[0] == ToHost.LOAD:
                logs.configure(colors=bool(message[1].get("colors")))
        self._host.receive(batch)

    def _lost(self) -> None:
        if not self._ending:
            process.die()


def main() -> None:
    if len(sys.argv) != 2 or not sys.argv[1].isdecimal():
        sys.exit("handrail.host is started by the worker; run: platform run")
    process.settle_in()
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.setblocking(False)
    sock.set_inheritable(False)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(_Child().live(sock))
    # what is left is the users': their tasks, exit functions and threads, which may hang
    process.exit_within(EXIT)
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(_settled(asyncio.all_tasks(loop)))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


async def _settled(tasks: set[asyncio.Task[object]]) -> None:
    own = asyncio.current_task()
    await asyncio.gather(*(task for task in tasks if task is not own), return_exceptions=True)


if __name__ == "__main__":
    main()
