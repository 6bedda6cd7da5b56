"""The bridges that are compared: what each needs first, and the command that starts it."""

import json
import os
import pathlib

from processes import free_port, run
from stage import HERE, PUBSUB_TOPIC


class Contestant:
    """A bridge by name; `command` starts it with a group that has read nothing yet."""

    # Whether a restart goes on where it ended, and whether it speaks SASL_SSL here.
    has_group = True
    speaks_tls = False

    def __init__(self, name):
        self.name = name

    def prepare(self, work):
        """Builds or fetches what it is made of."""

    def command(self, kafka, sink, topic, group, work, tls=False):
        """The command line and what its environment has on top."""
        raise NotImplementedError


class Cdnwarm(Contestant):
    """`cdnwarm bridge`, with the options that make the variant."""

    speaks_tls = True

    def __init__(self, name, binary, properties, options=()):
        super().__init__(name)
        self.binary, self.properties, self.options = binary, properties, options

    def command(self, kafka, sink, topic, group, work, tls=False):
        consumer = {"group.id": group, "auto.offset.reset": "earliest", **self.properties}
        settings = work / f"kafka-env-{group}"
        settings.write_text("[default]\n" + _lines(kafka.properties(tls)) + "[consumer]\n" + _lines(consumer))
        settings.chmod(0o600)
        return ([self.binary, "bridge", settings, topic, PUBSUB_TOPIC, *self.options],
                {"PUBSUB_EMULATOR_HOST": sink.address})


class Connect(Contestant):
    """Kafka Connect, standalone, with Google's sink connector, tuned as far as its settings go."""

    def prepare(self, work):
        self.lib, self.plain_text = work / "connect-lib", work / "connect-plain-text"
        if not list(self.lib.glob("pubsub-group-kafka-connector-*.jar")):
            run(["mvn", "--batch-mode", "--quiet", "--file", HERE / "connect" / "pom.xml",
                 "dependency:copy-dependencies", f"-DoutputDirectory={self.lib}", "-DincludeScope=runtime"])
        run(["javac", "-cp", f"{self.lib}/*", "-d", self.plain_text, HERE / "connect" / "PlainText.java"])
        services = self.plain_text / "META-INF" / "services"
        services.mkdir(parents=True, exist_ok=True)
        (services / "io.grpc.ManagedChannelProvider").write_text("PlainText\n")
        # Google's library does not start without credentials. These are nobody's; no token is made of them.
        self.credentials = work / "connect-credentials.json"
        self.credentials.write_text(json.dumps({
            "type": "authorized_user", "client_id": "nobody", "client_secret": "none", "refresh_token": "none"}))

    def command(self, kafka, sink, topic, group, work, tls=False):
        worker, connector = work / f"{group}-worker.properties", work / f"{group}-sink.properties"
        worker.write_text(_lines({
            "bootstrap.servers": kafka.broker,
            "listeners": f"http://127.0.0.1:{free_port()}",
            "key.converter": "org.apache.kafka.connect.converters.ByteArrayConverter",
            "value.converter": "org.apache.kafka.connect.converters.ByteArrayConverter",
            "offset.storage.file.filename": work / f"{group}-offsets",
            "offset.flush.interval.ms": 5000,
            # All plugins are on the class path; looking them up as services would miss Google's.
            "plugin.discovery": "only_scan",
        }))
        connector.write_text(_lines({
            "name": group,
            "connector.class": "com.google.pubsub.kafka.sink.CloudPubSubSinkConnector",
            "tasks.max": 2,
            "topics": topic,
            "cps.project": PUBSUB_TOPIC.split("/")[1],
            "cps.topic": PUBSUB_TOPIC.split("/")[3],
            "cps.endpoint": sink.address,
            "gcp.credentials.file.path": self.credentials,
            "metadata.publish": "true",
            # Full batches; the defaults are 100 messages and no bound on what is outstanding.
            "maxBufferSize": 1000,
            "maxBufferBytes": 9_000_000,
            "delayThresholdMs": 10,
            "maxOutstandingMessages": 100_000,
            "maxOutstandingRequestBytes": 100_000_000,
            "consumer.override.group.id": group,
            "consumer.override.auto.offset.reset": "earliest",
            "consumer.override.max.poll.records": 5000,
            "consumer.override.fetch.min.bytes": 65_536,
            "consumer.override.fetch.max.wait.ms": 50,
            "consumer.override.max.partition.fetch.bytes": 4 << 20,
        }))
        # The heap that Kafka's own start script gives it.
        return (["java", "-Xms256m", "-Xmx2g", f"-Dlog4j2.configurationFile={kafka.work / 'log4j2.yaml'}",
                 "-cp", f"{self.plain_text}:{kafka.lib}/*:{self.lib}/*",
                 "org.apache.kafka.connect.cli.ConnectStandalone", worker, connector], {})


class Python(Contestant):
    """The two official Python clients in the plainest loop."""

    def prepare(self, work):
        venv = work / "venv"
        self.python = venv / "bin" / "python"
        if not self.python.exists():
            run(["/usr/bin/python3", "-m", "venv", venv])
        run([self.python, "-m", "pip", "install", "--quiet", "-r", HERE / "python" / "requirements.txt"])

    def command(self, kafka, sink, topic, group, work, tls=False):
        return ([self.python, HERE / "python" / "bridge.py", kafka.broker, group, topic, PUBSUB_TOPIC],
                {"PUBSUB_EMULATOR_HOST": sink.address})


class Go(Contestant):
    """A bare loop on franz-go: the speed that is to be had when nothing is promised."""

    has_group = False

    def prepare(self, work):
        self.binary = work / "franz-go"
        run(["go", "build", "-o", self.binary, "."], cwd=HERE / "franz-go")

    def command(self, kafka, sink, topic, group, work, tls=False):
        return [self.binary, kafka.broker, topic, sink.address, PUBSUB_TOPIC], {}


class Raw:
    """The ceilings: librdkafka alone and Publish alone. Both measure themselves and say so as JSON."""

    TUNED = ("queued.min.messages=1000000", "fetch.queue.backoff.ms=5")

    # Where raw-consume and raw-publish are.
    folder = None

    def consume(self, kafka, topic, records, way, tuned, tls=False):
        """Reads the topic once, from its start."""
        settings = {**kafka.properties(tls), **dict(setting.split("=") for setting in (self.TUNED if tuned else ()))}
        broker = settings.pop("bootstrap.servers")
        options = [part for name, value in settings.items() for part in ("-X", f"{name}={value}")]
        return json.loads(run([self.folder / "raw-consume", broker, topic, str(records), "--way", way, *options]))

    def publish(self, sink, messages, in_flight):
        """Publishes full batches that were encoded once."""
        return json.loads(run([self.folder / "raw-publish", sink.address, "--messages", str(messages),
                               "--in-flight", str(in_flight)]))


def every_contestant(binary, properties):
    """All bridges by name."""
    path = pathlib.Path(binary)
    all_of_them = [
        Cdnwarm("cdnwarm", path, properties),
        Cdnwarm("cdnwarm-pack", path, properties, ("--pack", "100")),
        Cdnwarm("cdnwarm-static", path, properties, ("--group-instance-id", f"bench-{os.getpid()}")),
        Connect("connect"),
        Python("python"),
        Go("go"),
    ]
    return {contestant.name: contestant for contestant in all_of_them}


def _lines(properties):
    return "".join(f"{name}={value}\n" for name, value in properties.items())
