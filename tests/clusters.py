"""Clusters of three real nodes on this machine, for tests that kill one of them. All nodes end with the run."""

from __future__ import annotations

import concurrent.futures
import signal
from pathlib import Path

from kafka import new_cluster_id
from server import free_ports

from real_servers import Kafka, RabbitMQ, Server, UnavailableError

#: What a majority can miss one of.
NODES = 3


class Cluster:
    """Nodes that were started together, and an URL that names them all."""

    def __init__(self, nodes: list[Server]) -> None:
        self.nodes = nodes

    @property
    def name(self) -> str:
        return self.nodes[0].name

    def up(self) -> str:
        """Start what does not run. Raises :class:`UnavailableError`."""
        self.nodes[0].obtain()  # once: what is missing is installed here
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for _ in pool.map(lambda node: node.up(), self.nodes):
                pass
        return self.url

    @property
    def url(self) -> str:
        raise NotImplementedError

    @property
    def _addresses(self) -> str:
        return ",".join(f"127.0.0.1:{node.state['port']}" for node in self.nodes)

    def down(self) -> None:
        # in order the last of them would wait for the others
        for node in self.nodes:
            node.send(signal.SIGKILL)
        # the first one's port mapper is everybody's
        for node in reversed(self.nodes):
            node.down()


class RabbitMQNode(RabbitMQ):
    """A node that shares the cookie and the port mapper of *first*, and so finds it."""

    def __init__(self, folder: Path, first: RabbitMQNode | None = None) -> None:
        super().__init__(folder)
        self.first = first or self

    def prepare(self, state: dict[str, int], *, fresh: bool) -> None:
        super().prepare(state, fresh=fresh)
        if fresh and self.first is not self:
            cookie = self.folder / ".erlang.cookie"
            cookie.chmod(0o600)
            cookie.write_text((self.first.folder / ".erlang.cookie").read_text())
            cookie.chmod(0o400)

    def environment(self) -> dict[str, str]:
        ports = self.first.state or self.first._ports
        return super().environment() | {"ERL_EPMD_PORT": str(ports["epmd"])}

    def join(self) -> None:
        for words in (["stop_app"], ["join_cluster", self.first.environment()["RABBITMQ_NODENAME"]], ["start_app"]):
            done = self.ctl(*words)
            if done.returncode:
                raise UnavailableError(f"rabbitmqctl {' '.join(words)}: {done.stdout}{done.stderr}")


class RabbitMQCluster(Cluster):
    """Three nodes of RabbitMQ. A quorum queue has a copy on each."""

    nodes: list[RabbitMQNode]  # type: ignore[assignment]

    def __init__(self, folder: Path) -> None:
        first = RabbitMQNode(folder / "1")
        super().__init__([first, *(RabbitMQNode(folder / str(n), first) for n in range(2, NODES + 1))])
        self._joined = False

    def up(self) -> str:
        if not self._joined:
            self.nodes[0].up()  # its cookie and port mapper are the others'
        super().up()
        if not self._joined:
            for node in self.nodes[1:]:
                node.join()
            self._joined = True
        return self.url

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@{self._addresses}/"


class KafkaNode(Kafka):
    """A broker and controller among those of *controllers*."""

    #: The controller's port is chosen for all nodes at once, since each must know all.
    ports = ("port", "sasl")

    def __init__(self, folder: Path, number: int, cluster: str, controllers: list[int]) -> None:
        voters = ",".join(f"{n}@127.0.0.1:{port}" for n, port in enumerate(controllers, 1))
        super().__init__(
            folder,
            f"node.id={number}\ncontroller.quorum.voters={voters}\n"
            "offsets.topic.replication.factor=3\ntransaction.state.log.replication.factor=3\n"
            "transaction.state.log.min.isr=2\nmin.insync.replicas=2\n"
            # for so long a dead one still leads what it led; 9 s by default
            "broker.session.timeout.ms=3000\nbroker.heartbeat.interval.ms=500\n",
        )
        self.cluster = cluster
        self._controller = controllers[number - 1]

    def prepare(self, state: dict[str, int], *, fresh: bool) -> None:
        super().prepare({**state, "controller": self._controller}, fresh=fresh)


class KafkaCluster(Cluster):
    """Three nodes of Kafka. A topic has a copy on each, and takes records while two of them do."""

    def __init__(self, folder: Path) -> None:
        cluster = new_cluster_id()
        controllers = free_ports(NODES)
        super().__init__([KafkaNode(folder / str(n), n, cluster, controllers) for n in range(1, NODES + 1)])

    @property
    def url(self) -> str:
        return f"kafka://{self._addresses}"
