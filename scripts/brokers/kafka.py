#!/usr/bin/env python3
"""Brings up a real Apache Kafka for tests, on loopback only: ``up``, ``down``, ``url``, ``kill``, ``stop``, ``start``, ``sasl``.

One node in KRaft mode, broker and controller at once, from Maven's artefacts: it needs Java 17 and Maven, no Docker. All it
makes lies in ``.brokers/kafka`` of the checkout, which git ignores. ``up`` twice changes nothing.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

HERE = Path(__file__).resolve()
FOLDER = Path(os.environ.get("HANDRAIL_BROKERS") or HERE.parents[2] / ".brokers", "kafka")
JARS = FOLDER / "jars"
STATE = FOLDER / "state.json"
#: What clients of the SASL listener give.
USER, PASSWORD = "handrail", "on-loopback-only"
#: Seconds for the server to accept clients. It takes about five on a machine with nothing else to do.
PATIENCE = 120.0

PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule"
PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},SASL_PLAINTEXT://127.0.0.1:{sasl},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},SASL_PLAINTEXT://127.0.0.1:{sasl}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CONTROLLER
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.sasl_plaintext.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl_plaintext.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl_plaintext.plain.sasl.jaas.config={plain} required user_{user}="{password}";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS;User:{user}
log.dirs={folder}/data
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=2
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=2
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
log.retention.check.interval.ms=60000
"""

LOG4J = """<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="error">
  <Appenders><Console name="out"><PatternLayout pattern="%d %p %c{1.} %m%n"/></Console></Appenders>
  <Loggers><Root level="warn"><AppenderRef ref="out"/></Root></Loggers>
</Configuration>
"""


class UnavailableError(Exception):
    """The server cannot be had here; the text says why, and what to do."""


def fetch() -> None:
    """Have the server's jars, from Maven's cache or its repository."""
    if any(JARS.glob("kafka_2.13-*.jar")):
        return
    for program, package in (("java", "openjdk-17-jre-headless"), ("mvn", "maven")):
        if shutil.which(program) is None:
            raise UnavailableError(f"{program} is not installed (Debian, Ubuntu: apt-get install {package})")
    fresh = FOLDER / f"jars.{os.getpid()}"
    done = subprocess.run(
        [
            "mvn",
            "-q",
            "-B",
            "-f",
            str(HERE.with_name("kafka.pom.xml")),
            "dependency:copy-dependencies",
            f"-DoutputDirectory={fresh}",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        shutil.rmtree(fresh, ignore_errors=True)
        lines = [line for line in done.stdout.splitlines() if "ERROR" in line] or ["mvn failed"]
        raise UnavailableError(f"Maven could not fetch the server: {lines[0]}")
    with contextlib.suppress(OSError):  # another process was there first
        fresh.rename(JARS)
    shutil.rmtree(fresh, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def load() -> dict[str, int]:
    try:
        found: dict[str, int] = json.loads(STATE.read_text())
    except (OSError, ValueError):
        return {}
    return found


def java(*arguments: str, heap: str = "128m") -> list[str]:
    return [
        "java",
        f"-Xmx{heap}",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1" if heap == "128m" else "-XX:+ExplicitGCInvokesConcurrent",
        f"-Dlog4j2.configurationFile={FOLDER}/log4j2.xml",
        "-cp",
        f"{JARS}/*",
        *arguments,
    ]


def format_storage() -> dict[str, int]:
    port, sasl, controller = free_ports(3)
    state = {"port": port, "sasl": sasl, "controller": controller, "pid": 0}
    (FOLDER / "server.properties").write_text(
        PROPERTIES.format(folder=FOLDER, user=USER, password=PASSWORD, plain=PLAIN, **state)
    )
    (FOLDER / "log4j2.xml").write_text(LOG4J)
    shutil.rmtree(FOLDER / "data", ignore_errors=True)
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    config = str(FOLDER / "server.properties")
    users = [f"{way}=[name={USER},password={PASSWORD}]" for way in ("SCRAM-SHA-256", "SCRAM-SHA-512")]
    users += ["SCRAM-SHA-512=[name=nobody,password=nobody]"]
    scram = [word for user in users for word in ("--add-scram", user)]
    done = subprocess.run(
        java("kafka.tools.StorageTool", "format", "-t", cluster, "-c", config, *scram),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UnavailableError(f"the storage could not be formatted: {done.stdout.strip()[-500:]}")
    return state


def alive(pid: int) -> bool:
    """Whether that process is our server, and not another that got its number."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return str(FOLDER).encode() in words


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
        return True
    return False


def start() -> dict[str, int]:
    """Start the server on the data that is there."""
    state = load()
    if state and alive(state["pid"]):
        return state
    if not state or not (FOLDER / "data").is_dir():
        state = format_storage()
    with (FOLDER / "server.log").open("ab") as out:
        process = subprocess.Popen(
            java("kafka.Kafka", str(FOLDER / "server.properties"), heap="512m"),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=FOLDER,
        )
    state["pid"] = process.pid
    STATE.write_text(json.dumps(state))
    until = time.monotonic() + PATIENCE
    while not answers(state["port"]):
        if process.poll() is not None or time.monotonic() > until:
            raise UnavailableError(f"the server did not start; see {FOLDER}/server.log")
        time.sleep(0.1)
    return state


def up() -> str:
    FOLDER.mkdir(parents=True, exist_ok=True)
    ignore = FOLDER.parent / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n")
    fetch()
    return url(start())


def stop(how: signal.Signals) -> None:
    state = load()
    if state and alive(state["pid"]):
        os.kill(state["pid"], how)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(state["pid"], 0)
        until = time.monotonic() + 30.0
        while alive(state["pid"]):
            if time.monotonic() > until:
                os.kill(state["pid"], signal.SIGKILL)
            time.sleep(0.05)


def down() -> None:
    """Stop it and throw its data away; the jars stay."""
    stop(signal.SIGTERM)
    shutil.rmtree(FOLDER / "data", ignore_errors=True)
    STATE.unlink(missing_ok=True)


def url(state: dict[str, int] | None = None) -> str:
    state = state or load()
    if not state or not alive(state["pid"]):
        raise UnavailableError("the server is not up; python scripts/brokers/kafka.py up")
    return f"kafka://127.0.0.1:{state['port']}"


def main() -> int:
    command = sys.argv[1] if len(sys.argv) > 1 else "url"
    try:
        match command:
            case "up":
                print(up())
            case "url":
                print(url())
            case "sasl":
                url()
                print(f"kafka://{USER}:{PASSWORD}@127.0.0.1:{load()['sasl']}?sasl=scram-sha-512")
            case "down":
                down()
            case "stop":
                stop(signal.SIGTERM)
            case "kill":
                stop(signal.SIGKILL)
            case "start":
                print(url(start()))
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except UnavailableError as reason:
        print(reason, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
