"""The parts that are not cdnwarm's, for e2e_real.py: processes, the Pub/Sub emulator, nginx, Kafka's tools."""

import contextlib
import json
import os
import pathlib
import random
import socket
import subprocess
import time
import urllib.request

SCRIPTS = pathlib.Path(__file__).resolve().parent
# How long a started process may take until it says that it is ready, and a short-lived one until it ends. Generous,
# since a busy machine with two cores is the usual place to run this.
READY_SECONDS = 90
RUN_SECONDS = 180


class Failure(Exception):
    """The run did not show what it is to show; the text says what, with the log that tells why."""


def step(text):
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def wait_until(what, condition, seconds, processes=()):
    """Waits until `condition()` is true, and fails when it is not in time or one of `processes` ends meanwhile."""
    deadline = time.monotonic() + seconds
    while not condition():
        for process in processes:
            if process.popen.poll() is not None:
                raise Failure(f"{process.name} ended with status {process.popen.returncode} "
                              f"while waiting until {what}\n{process.tail()}")
        if time.monotonic() > deadline:
            logs = "\n".join(process.tail() for process in processes)
            raise Failure(f"not within {seconds} s: {what}\n{logs}")
        time.sleep(0.1)


def free_port():
    """A free port below the range that the kernel hands out to clients."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port


class Process:
    """A running program with its output in a file; ended when the `with` block is left."""

    def __init__(self, name, command, work, environment=None):
        self.name = name
        self.log = work / f"{name}.log"
        # Appended to, so that the log of a killed process stays when it is started again under the same name.
        self.seen_before = self.log.stat().st_size if self.log.exists() else 0
        with open(self.log, "ab") as output:
            self.popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                                          env={**os.environ, **(environment or {})}, cwd=work)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self):
        """Ends it as a crash would: it gets no chance to finish anything."""
        self.popen.kill()
        self.popen.wait()

    def drain(self):
        """Asks it to end, as Cloud Run does, and fails unless it then leaves with status 0."""
        self.popen.terminate()
        try:
            status = self.popen.wait(30)
        except subprocess.TimeoutExpired:
            raise Failure(f"{self.name} does not end on SIGTERM\n{self.tail()}") from None
        if status != 0:
            raise Failure(f"{self.name} ended with status {status} on SIGTERM\n{self.tail()}")

    def records(self):
        """The JSON objects among the lines that this process logged."""
        with open(self.log, "rb") as log:
            log.seek(self.seen_before)
            for line in log:
                # A last line that is still being written is no JSON yet.
                with contextlib.suppress(ValueError):
                    record = json.loads(line)
                    if isinstance(record, dict):
                        yield record

    def tail(self):
        lines = self.log.read_text(errors="replace").splitlines()[-15:]
        return "\n".join([f"--- the end of {self.log}:", *lines])


class Emulator:
    """Google's Pub/Sub emulator, spoken to over REST."""

    def __init__(self, address, project):
        self.address = address
        self.project = project
        # Proxy variables of the environment are none of the loopback interface's business.
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def put(self, path, body):
        request = urllib.request.Request(f"http://{self.address}/v1/{path}", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"}, method="PUT")
        with self.opener.open(request, timeout=20) as response:
            return json.load(response)

    def create_topic(self, name):
        return self.put(f"projects/{self.project}/topics/{name}", {})["name"]

    def delete_subscription(self, name):
        request = urllib.request.Request(f"http://{self.address}/v1/projects/{self.project}/subscriptions/{name}",
                                         headers={"Content-Type": "application/json"}, method="DELETE")
        self.opener.open(request, timeout=20).close()

    def create_push_subscription(self, name, topic, endpoint):
        self.put(f"projects/{self.project}/subscriptions/{name}",
                 {"topic": topic, "pushConfig": {"pushEndpoint": endpoint}, "ackDeadlineSeconds": 60})


class Caches:
    """One nginx that is the origin and, on a port each, a cache with a log of its own for every region."""

    def __init__(self, regions, work):
        self.work = work
        self.ports = {region: free_port() for region in regions}
        (work / "nginx.conf").write_text(self.config(free_port()))

    def config(self, origin_port):
        edges = "\n".join(f"""
    proxy_cache_path {self.work}/cache-{region} keys_zone={region}:20m max_size=1g inactive=1h;
    server {{
        listen 127.0.0.1:{port};
        access_log {self.work}/edge-{region}.log warmed;
        location / {{
            proxy_pass http://127.0.0.1:{origin_port};
            proxy_set_header Host $host;
            proxy_cache {region};
            proxy_cache_key $host$request_uri;
            proxy_cache_lock on;
            # RFC 9211: the evidence that a verdict rests on.
            add_header Cache-Status "nginx-{region}; $cache_result";
        }}
    }}""" for region, port in self.ports.items())
        temporary = "\n".join(f"    {kind}_temp_path {self.work}/nginx-{kind};"
                              for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        # Workers of a master that is root would otherwise be a user that cannot enter the working directory.
        user = "user root;" if os.geteuid() == 0 else ""
        return f"""daemon off;
{user}
worker_processes 1;
pid {self.work}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
{temporary}
    log_format warmed '$status $upstream_cache_status http://$host$request_uri';
    map $upstream_cache_status $cache_result {{
        HIT "hit";
        MISS "fwd=uri-miss; stored";
        EXPIRED "fwd=stale; stored";
        default "fwd=bypass";
    }}
    server {{
        listen 127.0.0.1:{origin_port};
        location / {{
            add_header Cache-Control "max-age=3600";
            return 200 "$request_uri\\n";
        }}
    }}
{edges}
}}
"""

    def start(self):
        process = Process("nginx", ["nginx", "-e", "stderr", "-p", str(self.work), "-c", str(self.work / "nginx.conf")],
                          self.work)
        wait_until("nginx accepts connections", self.accepts_connections, READY_SECONDS, [process])
        return process

    def accepts_connections(self):
        with contextlib.suppress(OSError):
            for port in self.ports.values():
                socket.create_connection(("127.0.0.1", port), 1).close()
            return True
        return False

    def warmed(self, region):
        """The URLs that this region's cache answered with 200."""
        log = self.work / f"edge-{region}.log"
        if not log.exists():
            return set()
        lines = (line.split() for line in log.read_text().splitlines())
        return {fields[2] for fields in lines if len(fields) == 3 and fields[0] == "200"}


def kafka_script(*arguments):
    result = subprocess.run([SCRIPTS / "kafka-local.sh", *arguments], stdin=subprocess.DEVNULL, capture_output=True,
                            text=True, timeout=RUN_SECONDS)
    if result.returncode != 0:
        raise Failure(f"kafka-local.sh {' '.join(arguments)} ended with status {result.returncode}\n"
                      f"{result.stdout}{result.stderr}")
    return result.stdout
