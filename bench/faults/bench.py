"""What every scenario starts with: a work directory, a proxy, a broker, a sink, a topic, and members on them."""

import contextlib
import pathlib
import shutil
import tempfile

from cluster import Cluster
from load import Load
from members import Member, find_binary, write_kafka_env
from processes import say
from proxy import Proxy
from sink import BINARY as SINK, Sink
from verdict import Ledger, Verdict


class Bench:
    """One scenario's parts; leaving the `with` block ends every process of it.

    Its directory, with all logs, stays where the verdict was violated or anything failed, and goes otherwise.
    """

    def __init__(self, name, options):
        self.name = name
        self.options = options
        self.binary = find_binary(options.binary)
        self.verdict = Verdict(name)
        self.members = []

    def __enter__(self):
        parent = pathlib.Path(self.options.work) if self.options.work else None
        if parent:
            parent.mkdir(parents=True, exist_ok=True)
        self.work = pathlib.Path(tempfile.mkdtemp(prefix=f"cdnwarm-faults-{self.name}-", dir=parent))
        self.stack = contextlib.ExitStack()
        try:
            self.proxy = self.stack.enter_context(Proxy())
            say(f"{self.name}: starting Kafka; logs are in {self.work}")
            self.cluster = self.stack.enter_context(Cluster(self.work, self.proxy.port))
            self.proxy.target_port = self.cluster.ports["PROXIED"]
            self.sink = self.new_sink("sink")
            self.ledger = Ledger(self.sink)
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(self, kind, error, _traceback):
        self.stack.close()
        if kind is None and not self.verdict.violations and not self.options.keep:
            shutil.rmtree(self.work, ignore_errors=True)
        else:
            say(f"{self.name}: logs are kept in {self.work}")

    def new_sink(self, name):
        return self.stack.enter_context(Sink(pathlib.Path(self.options.sink or SINK).resolve(), self.work, name))

    def kafka_env(self, group, name="kafka-env", through_proxy=True, **consumer):
        port = self.proxy.port if through_proxy else self.cluster.ports["PLAINTEXT"]
        # What was asked for at the prompt goes last, so that it wins.
        given = dict(item.split("=", 1) for item in self.options.kafka_property)
        return write_kafka_env(self.work / name, port, group, **consumer, **given)

    def member(self, name, kafka_env, topic, arguments=(), sink=None):
        """A bridge, not started yet."""
        member = Member(name, self.binary, self.work, kafka_env, topic, (sink or self.sink).address,
                        [*self.options.bridge_argument, *arguments])
        self.members.append(self.stack.enter_context(member))
        return member

    def load(self, topic, partitions, run="item"):
        return Load(self.cluster, topic, partitions, self.work, self.stack, run)

    def look_after_members(self):
        for member in self.members:
            if member.process:
                member.look_after()
