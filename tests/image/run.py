#!/usr/bin/env python3
"""Runs every role from the image's file system as Cloud Run would: read-only, PID 1, no root, PORT set, ended by SIGTERM.

    unshare --net --mount run.py --root FOLDER --inspected FILE --authority CA --work FOLDER

FOLDER is the image, unpacked; FILE what `buildah inspect --type image` says of it; CA.pem and CA.key an authority that the
image's own store has. Around it, in the network namespace that the caller made, stand a name server, a TLS origin, a
metadata server and a TLS listener in a broker's place. Needs root, openssl, curl, iproute2 and util-linux.
"""

import argparse
import base64
import http.client
import http.server
import json
import os
import re
import shutil
import signal
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

ORIGIN = "93.184.215.14"
METADATA = "169.254.169.254"
NAMES = {
    "cdn.example.com": ORIGIN,
    "stranger.example.com": ORIGIN,
    "postman-echo.com": ORIGIN,
    "kafka.example.com": "127.0.0.1",
    "metadata.google.internal": METADATA,
}
INSTANCE = "0087244a8037cdf3"
PORT = 8080
USER = 65532
AUDIENCE = "https://cdn-prewarm-europe-west1-123456789012.europe-west1.run.app"
ACCOUNT = "cloudrun-pubsub-invoker@example-project.iam.gserviceaccount.com"
# Cloud Run kills an instance 10 s after SIGTERM.
GRACE_SECONDS = 10
PATIENCE_SECONDS = 60
# Nothing else may be in the image: no shell, no package manager, no other program.
EXPECTED = re.compile(
    r"cdnwarm|tmp|etc|etc/nsswitch\.conf|etc/ssl|etc/ssl/certs|etc/ssl/certs/ca-certificates\.crt"
    r"|lib|lib64|usr|usr/lib|(usr/)?lib(64)?/([a-z0-9_]+-linux-gnu[a-z0-9]*(/lib[a-z_]+\.so\.\d+)?|ld-linux[a-z0-9-]*\.so\.\d+)"
)


class Failure(Exception):
    """Something is not as it must be."""


def check(holds, text):
    if not holds:
        raise Failure(text)


def run(*command, **options):
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout


# What stands around the image.


class NameServer(threading.Thread):
    """Knows a few names, over UDP, and says of all others that they are not there."""

    def __init__(self):
        super().__init__(daemon=True)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.53", 53))
        self.asked = set()

    def run(self):
        while True:
            packet, sender = self.socket.recvfrom(4096)
            labels, at = [], 12
            while packet[at]:
                labels.append(packet[at + 1:at + 1 + packet[at]].decode().lower())
                at += 1 + packet[at]
            name, kind = ".".join(labels), struct.unpack("!H", packet[at + 1:at + 3])[0]
            self.asked.add(name)
            address = NAMES.get(name)
            answers = b""
            if address and kind == 1:
                answers = struct.pack("!HHHIH", 0xC00C, 1, 1, 60, 4) + socket.inet_aton(address)
            header = packet[:2] + struct.pack("!HHHHH", 0x8180 if address else 0x8183, 1, bool(answers), 0, 0)
            self.socket.sendto(header + packet[12:at + 5] + answers, sender)


class Origin(http.server.BaseHTTPRequestHandler):
    """An edge that has everything."""

    protocol_version = "HTTP/1.1"
    asked = []

    def do_GET(self):
        Origin.asked.append((self.headers["host"], self.path))
        body = b"x" * 1024
        self.send_response(200)
        for name, value in {"Content-Length": len(body), "Cache-Control": "max-age=3600", "Age": 7,
                            "Cache-Status": "edge; hit; ttl=3593"}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Metadata(Origin):
    """As much of Google Cloud's metadata server as says where and who one is."""

    def do_GET(self):
        answer = {"/computeMetadata/v1/instance/id": INSTANCE,
                  "/computeMetadata/v1/instance/region": "projects/123456789012/regions/europe-west1"}.get(self.path)
        known = answer is not None and self.headers["metadata-flavor"] == "Google"
        body = (answer if known else "").encode()
        self.send_response(200 if known else 404)
        self.send_header("Metadata-Flavor", "Google")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_):
        pass


class Broker(socketserver.ThreadingTCPServer):
    """Finishes TLS handshakes, and counts those after which something was asked."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, context):
        self.context, self.believed = context, 0
        super().__init__(("127.0.0.1", 9093), None)

    def finish_request(self, request, _):
        try:
            with self.context.wrap_socket(request, server_side=True) as stream:
                self.believed += bool(stream.recv(4))
        except OSError:
            pass


def certificate(work, names, authority):
    """A server's context with a certificate for `names` of the authority, or of nobody where there is none."""
    leaf = work / names[0]
    subject = ["-subj", f"/CN={names[0]}", "-addext", "subjectAltName=" + ",".join(f"DNS:{name}" for name in names)]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{leaf}.key"]
    if authority:
        run("openssl", "req", *key, *subject, "-out", f"{leaf}.csr")
        run("openssl", "x509", "-req", "-in", f"{leaf}.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key",
            "-days", "2", "-copy_extensions", "copyall", "-CAcreateserial", "-CAserial", f"{leaf}.srl", "-out", f"{leaf}.pem")
    else:
        run("openssl", "req", "-x509", *key, *subject, "-days", "2", "-out", f"{leaf}.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{leaf}.pem", f"{leaf}.key")
    return context


def surroundings(work, authority):
    """Addresses, name server, origin, metadata server, broker."""
    run("ip", "link", "set", "lo", "up")
    for address in (ORIGIN, METADATA):
        run("ip", "address", "add", f"{address}/32", "dev", "lo")
    names = NameServer()
    names.start()
    known, stranger = certificate(work, ["cdn.example.com"], authority), certificate(work, ["stranger.example.com"], None)
    known.sni_callback = lambda stream, name, _: setattr(stream, "context", stranger) if name == "stranger.example.com" else None
    broker = Broker(certificate(work, ["kafka.example.com"], authority))
    secure = Server((ORIGIN, 443), Origin)
    secure.socket = known.wrap_socket(secure.socket, server_side=True, do_handshake_on_connect=False)
    for server in (secure, Server((ORIGIN, 80), Origin), Server((METADATA, 80), Metadata), broker):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    return names, broker


# The image.


class Container:
    """One role, as PID 1 of namespaces of its own, over the image read-only."""

    # $1 is the image, $2 the folder over which it is mounted, $3 holds resolv.conf and hosts; the rest is what to run.
    START = """
        set -e
        mount --bind "$1" "$2"
        for file in resolv.conf hosts; do mount --bind "$3/$file" "$2/etc/$file"; done
        mount --bind "$3" "$2/secrets"
        mount -t proc proc "$2/proc"
        mount -t tmpfs -o mode=755 tmpfs "$2/dev"
        for device in null zero full random urandom; do touch "$2/dev/$device"; mount --bind "/dev/$device" "$2/dev/$device"; done
        [ -z "$4" ] || mount -t tmpfs -o mode=1777 tmpfs "$2/tmp"
        mount -o remount,bind,ro "$2"
        shift 4
        exec env -i "$@"
    """

    def __init__(self, image, arguments, environment=None, temporary=False):
        self.arguments = arguments
        self.log = open(image.work / f"{len(list(image.work.glob('*.log')))}-{arguments[0].strip('-')}.log", "w+b")
        variables = [f"{name}={value}" for name, value in (environment or {}).items()]
        command = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "sh", "-c", self.START, "start",
                   image.root, image.mounted, image.files, "yes" if temporary else "", *variables,
                   shutil.which("setpriv"), "--no-new-privs", shutil.which("chroot"), f"--userspec={USER}:{USER}", image.mounted, "/cdnwarm", *arguments]
        self.unshare = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT)

    def text(self):
        self.log.flush()
        return Path(self.log.name).read_text(errors="replace")

    def wait_for(self, condition, what):
        """Until `condition` of the log so far; it must not end before."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            found = condition(self.text())
            if found:
                return found
            check(self.unshare.poll() is None, f"{self.arguments} ended before {what}:\n{self.text()[-3000:]}")
            check(time.monotonic() < deadline, f"{self.arguments}: no {what} in time:\n{self.text()[-3000:]}")
            time.sleep(0.05)

    def ended(self, status=0):
        """Its text, once it ended by itself with this status."""
        try:
            got = self.unshare.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.unshare.kill()
            raise Failure(f"{self.arguments} does not end:\n{self.text()[-3000:]}") from None
        check(got == status, f"{self.arguments}: status {got}, not {status}:\n{self.text()[-3000:]}")
        return self.text()

    def first_process(self):
        """The process that is PID 1 inside, as it is seen from here."""
        children = Path(f"/proc/{self.unshare.pid}/task/{self.unshare.pid}/children").read_text().split()
        check(len(children) == 1, f"{self.arguments}: {len(children)} processes")
        return int(children[0])

    def is_kept(self):
        """Whether it is PID 1, no root, without rights and over a read-only root."""
        process = Path(f"/proc/{self.first_process()}")
        status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
        check(status["NSpid"].split()[-1] == "1", f"{self.arguments} is not PID 1: {status['NSpid']}")
        check(status["Uid"].split() == [str(USER)] * 4, f"{self.arguments} runs as {status['Uid']}")
        check(int(status["CapEff"], 16) == 0 and status["NoNewPrivs"] == "1", f"{self.arguments} has rights")
        root = next(line for line in (process / "mountinfo").read_text().splitlines() if line.split()[4] == "/")
        check("ro" in root.split()[5].split(","), f"{self.arguments}: its root can be written")

    def stop(self):
        """SIGTERM; it must leave with status 0 in time."""
        self.is_kept()
        started = time.monotonic()
        os.kill(self.first_process(), signal.SIGTERM)
        text = self.ended()
        took = time.monotonic() - started
        check(took < GRACE_SECONDS, f"{self.arguments} took {took:.1f} s to stop")
        return text, took


class Image:
    """What all containers share."""

    def __init__(self, root, work):
        self.root, self.work = root, work
        self.mounted, self.files = work / "mounted", work / "files"
        self.mounted.mkdir()
        self.files.mkdir()
        # What a container runtime makes where an image does not have it.
        for folder in ("dev", "proc", "secrets"):
            (root / folder).mkdir(exist_ok=True)
        for file in ("resolv.conf", "hosts"):
            (root / "etc" / file).touch()
        (self.files / "resolv.conf").write_text("nameserver 127.0.0.53\n")
        (self.files / "hosts").write_text("127.0.0.1 localhost\n")

    def start(self, *arguments, **options):
        return Container(self, list(arguments), **options)

    def kafka_env(self, name, brokers, security="PLAINTEXT", group="image-test"):
        (self.files / name).write_text(
            f"[default]\nbootstrap.servers={brokers}\nsecurity.protocol={security}\n"
            f"[consumer]\ngroup.id={group}\nauto.offset.reset=earliest\n")
        return f"/secrets/{name}"


# What must hold.


def contents(root, inspected):
    """Nothing but what the binary needs, and a configuration that Cloud Run takes as it is."""
    found = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    strange = [path for path in found if not EXPECTED.fullmatch(path)]
    check(not strange, f"the image has {strange}")
    print(f"  {len(found)} files and folders:", *(path for path in found if not (root / path).is_dir()))
    config = inspected["OCIv1"]["config"]
    check(config["Entrypoint"] == ["/cdnwarm"] and not config.get("Cmd"), f"entry point {config}")
    check(config["User"] == f"{USER}:{USER}", f"user {config['User']}")
    check("8080/tcp" in config["ExposedPorts"], f"ports {config['ExposedPorts']}")
    labels = config["Labels"]
    for name in ("title", "description", "licenses", "version", "revision", "base.name"):
        value = labels.get(f"org.opencontainers.image.{name}", "unknown")
        check(value not in ("", "unknown"), f"label {name}: {value}")
    store = (root / "etc/ssl/certs/ca-certificates.crt").read_text().count("BEGIN CERTIFICATE")
    check(store > 100, f"{store} certificate authorities")
    print(f"  {store} certificate authorities, version {labels['org.opencontainers.image.version']}")


def one_shots(image):
    print(" ", image.start("--version").ended().strip())
    image.start("--help").ended()
    text = image.start("demo", temporary=True).ended()
    check("30 GETs for 30 pairs" in text, f"demo:\n{text}")
    print("  demo passes")


def names_and_tls(image, names):
    """`check` resolves by the program's own resolver, and believes the image's own store, and nobody else."""
    text = image.start("check", "https://cdn.example.com/check").ended()
    check(re.search(r"verdict +warm", text), text)
    check("cdn.example.com" in names.asked, "nobody asked the name server")
    text = image.start("check", "https://stranger.example.com/").ended(status=1)
    check("failed (tls: " in text, text)
    text = image.start("check", "https://nobody.example.com/").ended(status=1)
    check("failed (dns)" in text, text)
    print("  DNS and TLS work; an unknown authority and an unknown name are failures")


def kafka_tls(image, names, broker):
    """librdkafka resolves by libc, and its OpenSSL finds the image's store."""
    env = image.kafka_env("kafka-env-tls", "kafka.example.com:9093", "SSL")
    text = image.start("produce", env, "warming_urls", "1", "--kafka-timeout", "3").ended(status=1)
    check("kafka.example.com" in names.asked, "libc did not ask the name server")
    check(broker.believed, f"librdkafka does not believe the broker:\n{text}")
    print("  librdkafka's TLS believes the image's store")


def token():
    """As Cloud Run's front end hands it on: checked, and without its signature."""
    now = int(time.time())
    header = {"alg": "RS256", "kid": "k", "typ": "JWT"}
    claims = {"aud": AUDIENCE, "azp": "1", "email": ACCOUNT, "email_verified": True, "exp": now + 3600, "iat": now,
              "iss": "https://accounts.google.com", "sub": "1"}
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in (header, claims)]
    return ".".join([*parts, "SIGNATURE_REMOVED_BY_GOOGLE"])


def push(url, authorization):
    body = {"message": {"data": base64.b64encode(url.encode()).decode(), "attributes": {}, "messageId": "1",
                        "publishTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
            "subscription": "projects/example-project/subscriptions/warm-eu"}
    status = run("curl", "--silent", "--max-time", "30", "--http2-prior-knowledge", "--output", "/dev/null",
                 "--write-out", "%{http_code} %{http_version}", "--header", f"Authorization: Bearer {authorization}",
                 "--header", "Content-Type: application/json", "--data", json.dumps(body), f"http://127.0.0.1:{PORT}/")
    return status


def answer(port, path):
    """The status of a GET, 0 where nobody answers."""
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return 0


def serve(image):
    """With the arguments of create-cloudrun.sh."""
    script = (Path(__file__).resolve().parents[2] / "scripts/create-cloudrun.sh").read_text()
    arguments = re.search(r'--args="([^"]*)"', script).group(1)
    arguments = arguments.replace("$url", AUDIENCE).replace("$invoker", ACCOUNT).replace("$region", "europe-west1").split(",")
    started = time.monotonic()
    container = image.start(*arguments, environment={"PORT": PORT, "K_SERVICE": "cdn-prewarm-europe-west1",
                                                     "K_REVISION": "cdn-prewarm-europe-west1-00001", "K_CONFIGURATION": "x"})
    container.wait_for(lambda _: answer(PORT, "/ready") == 200, "/ready")
    took = time.monotonic() - started
    check(answer(PORT, "/health") == 200, "/health")
    check(push("https://cdn.example.com/pushed", "no.such.token") == "401 2", "a stranger's push is believed")
    status = push("https://cdn.example.com/pushed", token())
    check(status == "204 2", f"a push is answered {status}:\n{container.text()}")
    text, stopped = container.stop()
    lines = [json.loads(line) for line in text.splitlines() if '"verdict"' in line]
    check(len(lines) == 1, text)
    outcome = lines[0]
    check(outcome["verdict"] == "warm" and outcome["region"] == "europe-west1", str(outcome))
    check(INSTANCE.endswith(outcome["instance"]), f"the instance is {outcome['instance']}")
    check(("cdn.example.com", "/pushed") in Origin.asked, "nothing was fetched")
    print(f"  serve: ready after {took:.2f} s, a push over h2c is warm, stopped after {stopped:.2f} s")


def the_others(image):
    """bridge, consume-direct and produce beside a demo that stays."""
    demo = image.start("demo", "--keep", temporary=True)
    demo.wait_for(lambda text: "Ctrl-C ends it" in text, "addresses")
    kafka = re.search(r"Kafka +127\.0\.0\.1:(\d+)", demo.text()).group(1)
    pubsub = re.search(r"Pub/Sub +(127\.0\.0\.1:\d+)", demo.text()).group(1)
    env = image.kafka_env("kafka-env", f"kafka.example.com:{kafka}")
    image.start("produce", env, "warming_urls", "5").ended()
    for role, arguments, environment, log in (
        ("bridge", ["projects/demo/topics/warming_urls"], {"PUBSUB_EMULATOR_HOST": pubsub}, r'"bridge stopped: (\d+) records'),
        ("consume-direct", [], {}, r'"consume-direct stopped: .*?(\d+)'),
    ):
        container = image.start(role, env, "warming_urls", *arguments, environment={**environment, "CDNWARM_METRICS_ADDR": "127.0.0.1:9090"})
        container.wait_for(lambda _: answer(9090, "/ready") == 200, "/ready")
        wanted = f"cdnwarm_{role.replace('-', '_')}_records_read_total"
        container.wait_for(lambda _: reads(wanted) >= 5, "records")
        text, took = container.stop()
        check(re.search(log, text), text)
        print(f"  {role}: {reads_text(log, text)} records, stopped after {took:.2f} s")
    _, took = demo.stop()
    print(f"  demo --keep: stopped after {took:.2f} s")


def reads(name):
    try:
        connection = http.client.HTTPConnection("127.0.0.1", 9090, timeout=5)
        connection.request("GET", "/metrics")
        found = re.search(rf"^{name} (\d+)", connection.getresponse().read().decode(), re.MULTILINE)
    except OSError:
        return 0
    return int(found.group(1)) if found else 0


def reads_text(pattern, text):
    return re.search(pattern, text).group(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("root", "inspected", "authority", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        contents(arguments.root, json.loads(arguments.inspected.read_text()))
        work = arguments.work / "trial"
        work.mkdir()
        # Whoever runs inside is not root, and must get through.
        for folder in (arguments.work, work):
            folder.chmod(0o755)
        root = work / "image"
        shutil.copytree(arguments.root, root, symlinks=True)
        (root / "tmp").chmod(0o1777)
        names, broker = surroundings(work, arguments.authority)
        image = Image(root, work)
        one_shots(image)
        names_and_tls(image, names)
        kafka_tls(image, names, broker)
        serve(image)
        the_others(image)
    except Failure as failure:
        print(f"FAILED: {failure}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
