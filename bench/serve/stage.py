"""What every scenario stands on: an origin and an edge before it, a key set with a token, certificates, the load."""

import base64
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
sys.path.append(str(HERE.parent / "bridge"))

from processes import Failure, Process, free_port, run, wait_until  # noqa: E402

HOST = "cdn.example.com"
AUDIENCE, ACCOUNT = "https://push.example.com/", "push@bench.iam.gserviceaccount.com"
SMALL_BYTES = 1000
BIG_MIB = 100
NGINX = "/usr/sbin/nginx"
SYSTEM_ROOTS = pathlib.Path("/etc/ssl/certs/ca-certificates.crt")

# What all instances of nginx share: nothing in the file system but the folder of this run.
_NGINX = """daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
worker_processes {workers};
worker_rlimit_nofile 65536;
{modules}
events {{ worker_connections 8192; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 600s;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  client_body_buffer_size 64k;
{http}
}}
"""

_ORIGIN = """
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    root {folder}/objects;
    sendfile on;
    add_header Cache-Control "public, max-age=86400";
    location /hit/ {{ try_files /small =404; }}
    location /miss/ {{ try_files /small =404; }}
    location /big/ {{ try_files /big =404; }}
    location = /certs {{ default_type application/json; try_files /certs =404; }}
  }}
"""

# Each worker gets its share of connections. Under /hit/ and /big/ all URLs are one object, under /miss/ each is its own;
# `folder` is the edge's own.
_EDGE = """
  upstream origin {{ server 127.0.0.1:{origin}; keepalive 256; }}
  proxy_cache_path {folder}/cache keys_zone=edge:64m max_size=512m inactive=60s;
  server {{
    listen 127.0.0.1:{port} backlog=4096 reuseport;
    listen 127.0.0.1:{tls_port} ssl backlog=4096 reuseport;
    ssl_certificate {work}/edge.pem;
    ssl_certificate_key {work}/edge.key;
    ssl_session_cache shared:tls:1m;
    sendfile on;
    tcp_nopush on;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_cache edge;
    proxy_cache_valid 200 1d;
    proxy_max_temp_file_size 200m;
    add_header X-Cache-Status $upstream_cache_status;
    location /hit/ {{ proxy_cache_key hit; proxy_pass http://origin; }}
    location /miss/ {{ proxy_cache_key $uri; proxy_pass http://origin; }}
    location /big/ {{ proxy_cache_key big; proxy_pass http://origin; }}
  }}
"""


def nginx(name, folder, workers, http, modules=""):
    """A running nginx with this inside its http block."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "nginx.conf"
    settings.write_text(_NGINX.format(folder=folder, workers=workers, http=http, modules=modules))
    # Workers would drop to a user who may not read the folder.
    return Process(name, [NGINX, "-p", folder, "-c", settings, "-g", "user root;", "-e", folder / "error.log"],
                   folder / "output.log")


class Stage:
    """Origin, edge, keys and the load generator; all ended when the `with` block is left."""

    def __init__(self, work, logs, tools):
        self.work, self.logs = work, logs
        self.load = tools / "push-load"
        self.origin_port = free_port()
        # By whether it is the one for bodies, and over TLS.
        self._edge_ports = {(is_big, tls): free_port() for is_big in (False, True) for tls in (False, True)}
        # In memory where that can be: a disk is not what is measured.
        memory = pathlib.Path("/dev/shm")
        self.folder = (memory if memory.is_dir() else work) / f"cdnwarm-bench-serve-{os.getpid()}"
        self._running = contextlib.ExitStack()

    def __enter__(self):
        objects = self.folder / "objects"
        objects.mkdir(parents=True)
        self._running.callback(run, ["rm", "-rf", self.folder])
        (objects / "small").write_bytes(b"x" * SMALL_BYTES)
        with open(objects / "big", "wb") as big:
            for _ in range(BIG_MIB):
                big.write(os.urandom(1 << 20))
        self._keys(objects / "certs")
        self._certificates()
        origin = _ORIGIN.format(folder=self.folder, port=self.origin_port)
        self._running.enter_context(nginx("origin", self.folder / "origin", 1, origin))
        # To encrypt bodies takes as much as to read them: they come from an edge that may use all cores.
        self._start_edge("edge", "hit", 1)
        self._start_edge("edge-of-bodies", "big", "auto")
        return self

    def __exit__(self, *error):
        self._running.__exit__(*error)

    def edge_port(self, kind, tls):
        """Where the edge listens that has URLs of this kind."""
        return self._edge_ports[kind == "big", tls]

    def _start_edge(self, name, kind, workers):
        folder = self.folder / name
        edge = _EDGE.format(folder=folder, work=self.work, port=self.edge_port(kind, False),
                            tls_port=self.edge_port(kind, True), origin=self.origin_port)
        self._running.enter_context(nginx(name, folder, workers, edge))
        wait_until(f"the {name} has its object", lambda: self._is_hit(kind), 30)

    @property
    def roots(self):
        """The CA certificates that contestants trust."""
        return self.work / "roots.pem"

    @property
    def certs_url(self):
        """Where the keys of the tokens are."""
        return f"http://127.0.0.1:{self.origin_port}/certs"

    def push(self, address, kind, connections, pids=(), tls=False, **options):
        """Pushes URLs of one kind and returns what the load generator tells."""
        url = f"{'https' if tls else 'http'}://{HOST}/{kind}/{time.time_ns() % 10**12:012}"
        command = [self.load, address, url, "--connections", connections, "--token", self.work / "token"]
        for name, value in options.items():
            command += [f"--{name.replace('_', '-')}", value]
        if pids:
            command += ["--pids", ",".join(map(str, pids))]
        told = json.loads(run(command, timeout=300))
        if set(told["statuses"]) - {"200", "204"}:
            raise Failure(f"pushes were answered {told['statuses']}")
        return told

    def _is_hit(self, kind):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.edge_port(kind, False)}/{kind}/x", timeout=20) as answer:
                answer.read()
                return answer.headers["X-Cache-Status"] == "HIT"
        except OSError:
            return False

    def _keys(self, published):
        """A key set, and a token that is good for an hour, signed as Google's are."""
        key = self.work / "token.key"
        if not key.exists():
            run(["openssl", "genrsa", "-out", key, "2048"])
        modulus = run(["openssl", "rsa", "-in", key, "-noout", "-modulus"]).strip().partition("=")[2]
        published.write_text(json.dumps({"keys": [{
            "kty": "RSA", "alg": "RS256", "use": "sig", "kid": "bench", "e": "AQAB", "n": _part(bytes.fromhex(modulus))}]}))
        now = int(time.time())
        claims = {"aud": AUDIENCE, "azp": "1", "email": ACCOUNT, "email_verified": True, "exp": now + 3600, "iat": now,
                  "iss": "https://accounts.google.com", "sub": "1"}
        text = ".".join(_part(json.dumps(part).encode())
                        for part in ({"alg": "RS256", "kid": "bench", "typ": "JWT"}, claims))
        signature = subprocess.run(["openssl", "dgst", "-sha256", "-sign", key], input=text.encode(),
                                   capture_output=True, check=True).stdout
        (self.work / "token").write_text(f"{text}.{_part(signature)}")

    def _certificates(self):
        """A CA of this bench's own, the edge's certificate by it, and the CA among those of the system."""
        ca, key, edge = (self.work / name for name in ("ca.pem", "ca.key", "edge.pem"))
        self._make_certificates(ca, key, edge)
        # As many as there are where it is in earnest: each start reads them.
        system = SYSTEM_ROOTS.read_text() if SYSTEM_ROOTS.exists() else ""
        self.roots.write_text(ca.read_text() + system)

    def _make_certificates(self, ca, key, edge):
        if edge.exists():
            return
        new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "3650"]
        run(["openssl", "req", "-x509", *new, "-keyout", key, "-out", ca, "-subj", "/CN=bench CA"])
        request = self.work / "edge.csr"
        run(["openssl", "req", *new, "-keyout", self.work / "edge.key", "-out", request, "-subj", f"/CN={HOST}"])
        names = self.work / "edge.ext"
        names.write_text(f"subjectAltName=DNS:{HOST}\n")
        run(["openssl", "x509", "-req", "-in", request, "-CA", ca, "-CAkey", key, "-CAcreateserial", "-days", "3650",
             "-extfile", names, "-out", edge])


def _part(content):
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def build_tools():
    """Builds the load generator of bench/sink and returns the folder where it is."""
    package = PROJECT / "bench" / "sink"
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or package / "target")
    run(["cargo", "build", "--release", "--locked", "--bin", "push-load", "--target-dir", target], cwd=package)
    return target / "release"
