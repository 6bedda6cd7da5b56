"""One real Kafka broker: run by scripts/kafka-local.sh, asked and changed by Kafka's own tools and by kcat."""

import contextlib
import os
import re
import subprocess

from processes import ROOT, TOOL_SECONDS, Failure, run_tool

SCRIPT = ROOT / "scripts" / "kafka-local.sh"
# A poison record is larger than Pub/Sub's 10 MB.
PROPERTIES = "message.max.bytes=33554432\nreplica.fetch.max.bytes=33554432\n"
TOPICS = "org.apache.kafka.tools.TopicCommand"
GROUPS = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"
DELETE_RECORDS = "org.apache.kafka.tools.DeleteRecordsCommand"


class Cluster:
    """The broker of one run; its clients may come through a proxy, whose port it then advertises."""

    def __init__(self, work, advertised_port=None):
        self.dir = work / "kafka"
        self.dir.mkdir()
        self.environment = {"KAFKA_LOCAL_DIR": str(self.dir), "KAFKA_LOCAL_PROPERTIES": PROPERTIES}
        if advertised_port:
            self.environment["KAFKA_LOCAL_ADVERTISED_PORT"] = str(advertised_port)
        self.ports = {}

    def __enter__(self):
        try:
            self.script("start")
        except BaseException:
            self.end()
            raise
        self.ports = dict(re.findall(r"(\w+)_PORT=(\d+)", (self.dir / "ports").read_text()))
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        # Nobody reads its data again. Whatever is in the way, the next run must not find this broker.
        with contextlib.suppress(Failure):
            self.script("kill")

    def script(self, *arguments):
        # Not run_tool: the broker, a child of the script, would hold the pipes open for as long as it runs.
        with open(self.dir / "script.log", "ab") as log:
            try:
                subprocess.run([SCRIPT, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True,
                               timeout=180, env={**os.environ, **self.environment}, start_new_session=True)
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                raise Failure(f"{error}; see {self.dir}/script.log and kafka.log") from None

    def stop(self):
        self.script("stop")

    def crash(self):
        self.script("kill")

    def resume(self):
        self.script("resume")

    @property
    def bootstrap(self):
        """The direct listener, for the harness itself."""
        return f"127.0.0.1:{self.ports['PLAINTEXT']}"

    def tool(self, tool, *arguments, data=None, seconds=TOOL_SECONDS):
        command = [SCRIPT, "tool", tool, "--bootstrap-server", self.bootstrap, *map(str, arguments)]
        return run_tool(command, seconds, self.environment, data).decode(errors="replace")

    def create_topic(self, topic, partitions=6, **settings):
        settings = [f"{name.replace('_', '.')}={value}" for name, value in settings.items()]
        self.tool(TOPICS, "--create", "--topic", topic, "--partitions", partitions,
                  *(argument for setting in settings for argument in ("--config", setting)))

    def delete_topic(self, topic):
        self.tool(TOPICS, "--delete", "--topic", topic)

    def add_partitions(self, topic, partitions):
        self.tool(TOPICS, "--alter", "--topic", topic, "--partitions", partitions)

    def delete_records(self, topic, before):
        """Truncates the log: `before` is the new first offset by partition."""
        rows = ",".join(f'{{"topic":"{topic}","partition":{p},"offset":{o}}}' for p, o in before.items())
        path = self.dir / "delete-records.json"
        path.write_text(f'{{"version":1,"partitions":[{rows}]}}')
        self.tool(DELETE_RECORDS, "--offset-json-file", path)

    def reset_offsets(self, group, topic, *how):
        """Sets the committed offsets of a group that nobody is in; `how` as kafka-consumer-groups takes it."""
        self.tool(GROUPS, "--reset-offsets", "--group", group, "--topic", topic, *how, "--execute")

    def describe_group(self, group):
        """(committed, log end, member id) by partition; committed and member are None where there is none."""
        rows = {}
        for fields in map(str.split, self.tool(GROUPS, "--describe", "--group", group, "--offsets").splitlines()):
            # GROUP TOPIC PARTITION CURRENT-OFFSET LOG-END-OFFSET LAG CONSUMER-ID HOST CLIENT-ID
            if len(fields) >= 7 and fields[0] == group and fields[2].isdigit():
                committed = int(fields[3]) if fields[3].isdigit() else None
                rows[int(fields[2])] = (committed, int(fields[4]), None if fields[6] == "-" else fields[6])
        return rows

    def members_of(self, group):
        """How many members the group has."""
        output = self.tool(GROUPS, "--describe", "--group", group, "--members")
        return sum(1 for line in output.splitlines() if line.split()[:1] == [group])

    def read(self, topic, format_="%p %o %s\n", **consumer):
        """Every record of the topic, as an independent client reads it; lines of bytes."""
        properties = [f"{name.replace('_', '.')}={value}" for name, value in consumer.items()]
        return run_tool(["kcat", "-C", "-q", "-e", "-o", "beginning", "-b", self.bootstrap, "-t", topic, "-f", format_,
                         "-X", "fetch.message.max.bytes=33554432", "-X", "receive.message.max.bytes=100000000",
                         *(argument for item in properties for argument in ("-X", item))]).splitlines()

    def records(self, topic):
        """The truth to compare with: {(partition, offset): value}."""
        rows = (line.split(b" ", 2) for line in self.read(topic))
        return {(int(partition), int(offset)): value for partition, offset, value in rows}

    def ends(self, topic, partitions):
        """The offset after the last record, by partition."""
        wanted = [argument for p in range(partitions) for argument in ("-t", f"{topic}:{p}:-1")]
        output = run_tool(["kcat", "-Q", "-b", self.bootstrap, *wanted]).decode()
        return {int(p): int(o) for p, o in re.findall(r"\[(\d+)\] offset (\d+)", output)}

    def segment(self, topic, partition):
        """The file that holds the records of a partition, for as long as they are few."""
        (path,) = (self.dir / "data" / f"{topic}-{partition}").glob("*.log")
        return path
