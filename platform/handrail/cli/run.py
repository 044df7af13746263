"""``platform run`` and ``platform work``: a worker with a terminal, signals and watched files around it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import structlog
import typer

from handrail import config as configuration
from handrail import duration, errors, logs
from handrail.cli.common import Config, LogLevel, UsageError, locate, queue_of, shown
from handrail.cli.exit_codes import ExitCode
from handrail.config.model import Settings

if TYPE_CHECKING:
    from handrail.message import Message
    from handrail.watch import Watcher
    from handrail.worker import Worker

log: Any = structlog.get_logger("handrail")

_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def register(app: typer.Typer) -> None:
    """Add the commands of this module to *app*."""
    app.command("run")(run)
    app.command("work")(work)


def run(
    config: Config = None,
    log_level: LogLevel = None,
    watch: Annotated[bool, typer.Option(help="Reload when a file of the project changes.")] = True,
) -> None:
    """Run the project for development: watch its files, reload on a change, take keys on a terminal."""
    settings = _begin(config, log_level)
    with only_one(settings):
        code = asyncio.run(_Service(settings, queues=None, processes=1, watch=watch, keys=True).serve())
    raise typer.Exit(code)


def work(
    config: Config = None,
    processes: Annotated[int, typer.Option("--processes", "-p", min=1, help="Hosts: processes that run handlers.")] = 1,
    queues: Annotated[
        str | None,
        typer.Option("--queues", "-q", metavar="A,B", help="Serve only these. Default: all that have a handler."),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(metavar="delays", help="Run no handler: only move delayed messages on as they fall due (Kafka)."),
    ] = None,
    log_level: LogLevel = None,
) -> None:
    """Run the project in production: no watching, no keys, as many workers beside each other as you like."""
    if only is not None:
        if only != "delays":
            raise UsageError(
                f"--only takes the word delays, not {only!r}; to serve some queues alone write --queues A,B"
            )
        if queues is not None or processes != 1:
            raise UsageError("--only delays runs no handler, so --queues and --processes mean nothing beside it")
        from handrail.cli.forward import forward_delays  # noqa: PLC0415

        settings = _begin(config, log_level, check_handlers=False)
        asyncio.run(forward_delays(settings))
        raise typer.Exit
    settings = _begin(config, log_level)
    names = None
    if queues is not None:
        names = [name.strip() for name in queues.split(",") if name.strip()]
        if not names:
            raise UsageError("--queues names no queue; write it like --queues mails,reports")
        for name in names:
            queue_of(settings, name)
    raise typer.Exit(
        asyncio.run(_Service(settings, queues=names, processes=processes, watch=False, keys=False).serve())
    )


def _begin(config: Path | None, log_level: str | None, *, check_handlers: bool = True) -> Settings:
    if log_level is not None:
        os.environ[logs.VARIABLE] = log_level  # hosts take it from there
    try:
        logs.configure()
    except ValueError as error:
        raise UsageError(f"{'--log-level' if log_level else logs.VARIABLE}: {error}") from None
    return configuration.load(locate(config), check_handlers=check_handlers)


@contextlib.contextmanager
def only_one(settings: Settings) -> Iterator[None]:
    """Hold the project's lock: two watchers would reload and repeat each other's lines. Raises AlreadyRunningError."""
    folder = Path(settings.data)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / "run.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise errors.StartError(f"cannot write to {shown(folder)}: {error.strerror}; make it writable") from None
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(file, 32, 0).decode("ascii", "replace").strip()
            raise errors.AlreadyRunningError(
                f"this project is run already{f' by pid {pid}' if pid else ''} ({settings.root}); "
                "stop that one first, or add workers with: platform work"
            ) from None
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(file)


class _Service:
    """One worker with what surrounds it: signals, keys, reloads."""

    def __init__(
        self, settings: Settings, *, queues: list[str] | None, processes: int, watch: bool, keys: bool
    ) -> None:
        self._settings = settings
        self._queues = queues
        self._processes = processes
        self._watch = watch
        self._with_keys = keys
        self._stop = asyncio.Event()
        self._signals = 0
        self._last_signal = signal.SIGTERM
        self._reloading = asyncio.Lock()
        self._problems: list[str] = []
        self._paused = False
        self._last: Message | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._worker: Worker | None = None

    # -- life ----------------------------------------------------------------------------------------------------------

    async def serve(self) -> int:
        """Start, serve until told to stop, drain; returns the exit code."""
        from handrail.watch import Watcher  # noqa: PLC0415 - only here, and it brings watchdog
        from handrail.worker import Worker  # noqa: PLC0415 - the other commands need none

        loop = asyncio.get_running_loop()
        for number in _STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's background job: they mean it
                loop.add_signal_handler(number, self._signalled, number)
        # made before the handlers are loaded, so that no change falls between the two
        watcher = Watcher(self._settings) if self._watch else None
        worker = self._worker = Worker(
            self._settings, queues=self._queues, processes=self._processes, on_outcome=self._remember
        )
        keys = None
        try:
            if not await self._started(worker):
                return self._code()
            if self._with_keys:
                keys = self._take_keys()
            if watcher is not None:
                self._spawn(self._reload_on_changes(watcher), "watching files")
            await self._stop.wait()
            await self._end_tasks()
            await self._drain(worker)
        finally:
            if keys is not None:
                keys.stop()
            if watcher is not None:
                watcher.close()
            await self._end_tasks()
            # after an error too: hosts and connections must not outlive this
            await worker.stop(0)
        return self._code()

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _code(self) -> int:
        return 128 + self._last_signal if self._signals > 1 else ExitCode.OK

    async def _started(self, worker: Worker) -> bool:
        from handrail.cli import report  # noqa: PLC0415

        began = time.monotonic()
        start = asyncio.create_task(worker.start())
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait((start, stop), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not start.done():
            start.cancel()
            await asyncio.gather(start, return_exceptions=True)
            log.info("stopped before it was ready")
            return False
        found = await start
        report.ready(self._settings, found, worker.places, processes=self._processes, seconds=time.monotonic() - began)
        return True

    async def _drain(self, worker: Worker) -> None:
        began = time.monotonic()
        if self._signals > 1:
            worker.hurry()
        interrupted = await worker.stop()
        seconds = round(time.monotonic() - began, 2)
        if not logs.for_people():
            log.info("stopped", seconds=seconds, interrupted_and_given_back=interrupted)
            return
        given_back = f"; {interrupted} unfinished, given back to the broker" if interrupted else ""
        log.info(f"stopped in {duration.text(seconds)}{given_back}")  # noqa: G004 - people read a sentence

    def _signalled(self, number: signal.Signals) -> None:
        self._signals += 1
        self._last_signal = number
        if self._signals == 1:
            log.info(
                "taking nothing new; running handlers may finish, and a second signal does not wait for them",
                signal=number.name,
                drain_timeout=duration.text(self._settings.drain_timeout),
            )
            self._stop.set()
        elif self._signals == 2:
            log.warning("stopping at once; what runs is given back", signal=number.name)
            if self._worker is not None:
                self._worker.hurry()
        else:
            # asked three times: hosts end with the pipe, and the broker gives back what we held
            logs.sink().drain(0.2)
            os._exit(128 + number)

    def _remember(self, message: Message, *_rest: Any) -> None:
        self._last = message

    # -- reloading -----------------------------------------------------------------------------------------------------

    async def _reload_on_changes(self, watcher: Watcher) -> None:
        async for change in watcher.changes():
            await self._reload([*change.files, *(f"{name} (gone)" for name in change.gone if name not in change.files)])

    async def _reload(self, files: list[str]) -> None:
        from handrail.cli import report  # noqa: PLC0415

        assert self._worker is not None
        async with self._reloading:
            try:
                settings = configuration.load(Path(self._settings.path), check_handlers=True)
            except errors.ConfigError as error:
                self._show_broken(files, error.problems)
                return
            except errors.HandrailError as error:
                self._show_broken(files, [str(error)])
                return
            done = await self._worker.reload(settings, files)
            if done.problems:
                self._show_broken(files, done.problems)
                return
            self._settings = settings
            mended, self._problems = bool(self._problems), []
            report.reloaded(files, done.changes, done.seconds, done.in_flight, mended=mended)

    def _show_broken(self, files: list[str], problems: list[str]) -> None:
        from handrail.cli import report  # noqa: PLC0415

        if problems != self._problems:  # an editor that saves twice must not say it twice
            report.broken(self._settings, files, problems)
        self._problems = problems

    # -- keys ----------------------------------------------------------------------------------------------------------

    def _take_keys(self) -> Any:
        if not logs.for_people():
            return None
        from handrail.cli.keys import BAR, Keys  # noqa: PLC0415

        keys = Keys(self._pressed)
        if not keys.start():
            return None
        self._print(BAR, dim=True)
        return keys

    def _print(self, text: str, *, dim: bool = False) -> None:
        logs.sink().write(f"\x1b[2m{text}\x1b[0m\n" if dim and logs.colored() else f"{text}\n")

    def _pressed(self, key: str) -> None:
        from handrail.cli.keys import BAR, HELP  # noqa: PLC0415

        assert self._worker is not None
        if self._stop.is_set():
            return
        match key:
            case "s":
                self._spawn(self._send_again(), "sending again")
            case "r":
                self._spawn(self._reload([]), "reloading")
            case "p":
                self._paused = not self._paused
                if self._paused:
                    self._worker.pause()
                    log.info("paused: nothing new starts until you press p again")
                else:
                    self._worker.resume()
                    log.info("going on")
            case "c":
                logs.sink().write("\x1b[2J\x1b[3J\x1b[H")
                self._print(BAR, dim=True)
            case "?" | "h":
                self._print(HELP)
            case "q":
                self._signalled_by_key()
            case "\r" | "\n":
                self._print("")
            case _:
                return

    def _signalled_by_key(self) -> None:
        log.info("quitting: running handlers may finish; Ctrl-C does not wait")
        self._signals = max(self._signals, 1)
        self._stop.set()

    def _spawn(self, work: Coroutine[Any, Any, None], what: str) -> None:
        task = asyncio.create_task(self._guard(work, what))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, work: Coroutine[Any, Any, None], what: str) -> None:
        try:
            await work
        except errors.HandrailError as error:
            log.error(f"{what} failed", reason=str(error))  # noqa: G004 - its text is all there is to say
        except Exception:  # a comfort of development must never end the worker
            log.exception(f"{what} failed; serving goes on")  # noqa: G004

    async def _send_again(self) -> None:
        from handrail.message import Message, new_id  # noqa: PLC0415

        assert self._worker is not None
        last = self._last
        if last is None:
            self._print("no message has been handled yet")
            return
        again = Message(
            queue=last.queue,
            id=new_id(),
            body=last.body,
            content_type=last.content_type,
            headers=last.headers,
            priority=last.priority,
            key=last.key,
            sent_at=time.time(),
            options=last.options,
        )
        queue = self._settings.queues.get(last.queue)
        if queue is None:
            self._print(f"queue {last.queue} is no longer in queues.yaml")
            return
        adapter = self._worker.adapter(queue.broker)
        refused = await adapter.publish([again], self._settings.send_timeout)
        if refused:
            raise refused[0]
        log.info("sent the last message again", queue=again.queue, id=again.id)
