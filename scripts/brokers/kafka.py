#!/usr/bin/env python3
"""A real Apache Kafka for tests: ``up`` prints its URL, ``url``, ``sasl``, ``stop``, ``kill``, ``down`` throws it away.

One node in KRaft mode, broker and controller at once, from Maven's artefacts: it needs Java 17 and Maven, which are installed
where that may be done, and no Docker.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from server import CACHE, Server, UnavailableError, install, locked, main, persist, run

POM = Path(__file__).with_name("kafka.pom.xml")
#: The server's programs, the same for every checkout and server.
JARS = CACHE / "kafka-4.3.1"
#: The oldest Java that runs it, and the package that brings one.
JAVA, JRE = 17, "openjdk-17-jre-headless"
#: What clients of the SASL listener give.
USER, PASSWORD = "handrail", "on-loopback-only"

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


def java_version() -> int:
    """The version of the ``java`` that would run: 17, say; 0 when it does not tell."""
    said = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(?:1\.)?(\d+)', said)
    return int(found[1]) if found else 0


def new_cluster_id() -> str:
    """An id for a cluster; one that begins with a dash would be taken for an option."""
    while (made := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return made


class Kafka(Server):
    """A cluster of one."""

    name = "kafka"
    ports = ("port", "sasl", "controller")

    def __init__(self, folder: Path | None = None, properties: str = "") -> None:
        """*properties*: further lines of its ``server.properties``; the last of a name counts."""
        super().__init__(folder)
        self.properties = properties
        #: The id that the nodes of a cluster share.
        self.cluster = new_cluster_id()

    def obtain(self) -> None:
        with locked(CACHE / "kafka.lock"):
            install(JRE, lambda: shutil.which("java"))
            if (version := java_version()) < JAVA:
                raise UnavailableError(
                    f"java is version {version}, and Kafka 4 needs {JAVA} or newer (Debian, Ubuntu: apt-get install {JRE})"
                )
            if (JARS / "complete").exists():
                return
            install("maven", lambda: shutil.which("mvn"))

            def fetch() -> subprocess.CompletedProcess[str]:
                shutil.rmtree(JARS, ignore_errors=True)
                # -U: Maven would remember what it could not fetch
                command = ["mvn", "-U", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies"]
                return run([*command, f"-DoutputDirectory={JARS}"])

            done = persist(fetch)
            if done.returncode:
                lines = [line for line in done.stdout.splitlines() if "ERROR" in line] or ["mvn failed"]
                raise UnavailableError(f"Maven could not fetch the server: {lines[0]}")
            (JARS / "complete").touch()

    def java(self, *arguments: str, heap: str = "128m") -> list[str]:
        """The command that runs a class of the server's jars with *arguments*."""
        return [
            "java",
            f"-Xmx{heap}",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1" if heap == "128m" else "-XX:+ExplicitGCInvokesConcurrent",
            f"-Dlog4j2.configurationFile={self.folder}/log4j2.xml",
            "-cp",
            f"{JARS}/*",
            *arguments,
        ]

    def prepare(self, state: dict[str, int], *, fresh: bool) -> None:
        settings = self.folder / "server.properties"
        settings.write_text(
            PROPERTIES.format(folder=self.folder, user=USER, password=PASSWORD, plain=PLAIN, **state) + self.properties
        )
        (self.folder / "log4j2.xml").write_text(LOG4J)
        if not fresh and (self.folder / "data" / "meta.properties").exists():
            return
        # what an interrupted start left is no data yet
        shutil.rmtree(self.folder / "data", ignore_errors=True)
        users = [f"{way}=[name={USER},password={PASSWORD}]" for way in ("SCRAM-SHA-256", "SCRAM-SHA-512")]
        users += ["SCRAM-SHA-512=[name=nobody,password=nobody]"]
        scram = [word for user in users for word in ("--add-scram", user)]
        done = run(self.java("kafka.tools.StorageTool", "format", "-t", self.cluster, "-c", str(settings), *scram))
        if done.returncode:
            raise UnavailableError(f"the storage could not be formatted: {done.stdout.strip()[-500:]}")

    def command(self) -> list[str]:
        return self.java("kafka.Kafka", str(self.folder / "server.properties"), heap="512m")

    def environment(self) -> dict[str, str]:
        # these would add agents, options and other jars
        return {name: value for name, value in os.environ.items() if not name.startswith(("KAFKA_", "CLASSPATH"))}

    def url_of(self, state: dict[str, int]) -> str:
        return f"kafka://127.0.0.1:{state['port']}"

    @property
    def sasl_url(self) -> str:
        """For a client that gives a name and a password. Raises :class:`UnavailableError` when the server is not up."""
        self.url  # noqa: B018 - raises
        return f"kafka://{USER}:{PASSWORD}@127.0.0.1:{self.state['sasl']}?sasl=scram-sha-512"


if __name__ == "__main__":
    kafka = Kafka()
    if sys.argv[1:] == ["sasl"]:
        try:
            print(kafka.sasl_url)
        except UnavailableError as error:
            sys.exit(str(error))
    else:
        sys.exit(main(kafka, sys.argv[1:], __doc__))
