"""What every scenario stands on: a real Kafka, the null Pub/Sub, and what has to be built or fetched first."""

import json
import os
import pathlib
import subprocess
import urllib.request

from processes import Failure, Process, run, wait_until

HERE = pathlib.Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
PUBSUB_TOPIC = "projects/bench/topics/bench"


class Kafka:
    """A broker by scripts/kafka-local.sh, in a directory of its own; ended when the `with` block is left."""

    def __init__(self, work):
        self.script = PROJECT / "scripts" / "kafka-local.sh"
        self.work = work / "kafka"
        self.environment = {**os.environ, "KAFKA_LOCAL_DIR": str(self.work)}
        self.lib = pathlib.Path(os.environ.get("KAFKA_LOCAL_LIB") or self.work / "lib")

    def __enter__(self):
        if not list(self.lib.glob("kafka_2.13-*.jar")):
            self._script("install")
        # One that a killed run left behind.
        self._script("stop")
        # Its output goes to files: a pipe would stay open as long as the broker that the script leaves running.
        self._script("start")
        ports = dict(line.split("=") for line in (self.work / "ports").read_text().split())
        self.broker = f"127.0.0.1:{ports['PLAINTEXT_PORT']}"
        return self

    def __exit__(self, *_):
        self._script("stop")

    def version(self):
        """As the jar's name has it."""
        return next(self.lib.glob("kafka_2.13-*.jar")).stem.rpartition("-")[2]

    def make_topic(self, name, partitions):
        """Makes a topic; fails if there is one of that name."""
        self._script("topic", name, str(partitions))

    def make_topic_of(self, name, partitions, lines):
        """Makes a topic with a record for each line of the file, and says how many lie in each partition."""
        self.make_topic(name, partitions)
        # Each record goes to a partition by lot, not each 10 ms of records: the partitions come out even.
        run(["kcat", "-P", "-b", self.broker, "-t", name, "-l", lines, "-X", "acks=all",
             "-X", "sticky.partitioning.linger.ms=0"])
        return self.end_offsets(name, partitions)

    def end_offsets(self, topic, partitions):
        """How many records were ever written to each partition."""
        asked = [part for partition in range(partitions) for part in ("-t", f"{topic}:{partition}:-1")]
        answer = run(["kcat", "-Q", "-b", self.broker, *asked])
        # bench [3] offset 166667
        offsets = {int(line.split("[")[1].split("]")[0]): int(line.split()[-1]) for line in answer.splitlines()}
        return [offsets[partition] for partition in range(partitions)]

    def warm_up(self, topic):
        """Reads the topic twice, so that the first contestant meets a compiled broker and a full page cache.

        As groups: the first group of a broker waits until the topic of committed offsets is made.
        """
        for group in ("warm-up-1", "warm-up-2"):
            run(["kcat", "-G", group, "-b", self.broker, "-X", "auto.offset.reset=earliest", "-e", "-q", "-f", "", topic])

    def tool(self, *arguments):
        """The command line of one of Kafka's own tools."""
        return [self.script, "tool", *arguments]

    def properties(self, tls):
        """How librdkafka reaches it, in plain text or over SASL_SSL."""
        if not tls:
            return {"bootstrap.servers": self.broker}
        lines = (self.work / "kafka-env").read_text().split("[consumer]")[0].splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def _script(self, *arguments):
        log = self.work.parent / "kafka-local.log"
        with open(log, "ab") as output:
            done = subprocess.run([self.script, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                  env=self.environment, check=False)
        if done.returncode != 0:
            raise Failure(f"kafka-local.sh {arguments[0]} failed\n{log.read_text(errors='replace')[-1500:]}")


class Sink:
    """A null Pub/Sub of its own for one run."""

    def __init__(self, binary, log, latency_ms=0, record=None):
        options = ["--latency-ms", str(latency_ms)] + (["--record", record] if record else [])
        self.process = Process("null-pubsub", [binary, *options], log, stdout=subprocess.PIPE)
        words = self.process.popen.stdout.readline().decode().split()
        if len(words) != 4:
            raise Failure(f"null-pubsub did not start\n{self.process.tail()}")
        self.address, self.control = words[1], words[3]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.__exit__(*error)
        self.process.popen.stdout.close()

    def stats(self):
        """The totals, and the samples as (Unix seconds, messages)."""
        stats = json.loads(self._ask("GET", "/stats"))
        stats["samples"] = [(unix_ms / 1000, messages) for unix_ms, messages in stats["samples"]]
        return stats

    def urls(self):
        """How many URLs came so far."""
        return json.loads(self._ask("GET", "/totals"))["urls"]

    def reset(self):
        """Begins to count anew."""
        self._ask("POST", "/reset")

    def faults(self, *rules):
        """Sets what goes wrong from now on."""
        self._ask("POST", "/faults", json.dumps(rules).encode())

    def wait_for(self, urls, seconds, process):
        """Waits for so many URLs from the process."""
        wait_until(f"{urls:,} URLs came", lambda: self.urls() >= urls, seconds, process)

    def _ask(self, method, path, body=None):
        request = urllib.request.Request(f"http://{self.control}{path}", method=method, data=body)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()


def write_urls(path, count):
    """Writes so many different URLs of 80 bytes, unless the file is there from a run before."""
    line_bytes = 81
    if path.exists() and path.stat().st_size == count * line_bytes:
        return
    with open(path, "w") as lines:
        for index in range(count):
            season, rest = divmod(index, 100_000)
            episode, segment = divmod(rest, 1_000)
            lines.write(f"https://cdn.example.com/video/season-{season:04}/episode-{episode:04}/1080p60/"
                        f"segment-{segment:05}.m4s\n")


def build_tools(features):
    """Builds bench/sink, with the features asked for, and returns the folder of its binaries."""
    package = PROJECT / "bench" / "sink"
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or package / "target")
    chosen = ["--features", ",".join(features)] if features else []
    run(["cargo", "build", "--release", "--locked", "--target-dir", target, *chosen], cwd=package)
    return target / "release"
