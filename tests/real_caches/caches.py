#!/usr/bin/env python3
"""Runs `cdnwarm check` against real caches, and holds each verdict against what the cache did by its own log.

nginx, Varnish, Squid and Traffic Server each stand before one scripted origin, all of them on loopback. Every kind of object
is looked at plainly, again, with --certify and with --skip-warm; a hit must be warm and nothing else may be, and after a
certified verdict another client must find what was promised. The advice on what is not warm is followed, and must help.

    tests/real_caches/caches.py --binary target/debug/cdnwarm [--only nginx] [--keep]

Needs Debian's nginx, varnish, squid and trafficserver; one that is missing is a failure.
"""

import argparse
import collections
import http.client
import http.server
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

# Longer than what is read in any case, so that --skip-warm leaves it.
BODY = b"0123456789abcdef" * 16_384
LARGE = BODY * 8
LIMIT_BYTES = 1 << 20
PATIENCE_SECONDS = 30
HOST = "cdn.example.com"
FRESH = "max-age=60"
SHORT = "max-age=2"
# By kind: status, headers, and what the verdict on a first look is, whatever the cache.
KINDS = {
    "cacheable": (200, {"Cache-Control": FRESH}, "filled"),
    "expires": (200, {"Expires": "Fri, 01 Jan 2100 00:00:00 GMT"}, "filled"),
    "no-store": (200, {"Cache-Control": "no-store"}, "uncacheable (no-store)"),
    "private": (200, {"Cache-Control": "private, max-age=60"}, "uncacheable (private)"),
    "no-cache": (200, {"Cache-Control": "no-cache"}, "uncacheable (no-cache)"),
    "zero": (200, {"Cache-Control": "max-age=0"}, "uncacheable (zero freshness)"),
    "cookie": (200, {"Cache-Control": FRESH, "Set-Cookie": "id=1"}, "uncacheable (set-cookie)"),
    "vary": (200, {"Cache-Control": FRESH, "Vary": "Accept-Encoding"}, "filled"),
    "vary-any": (200, {"Cache-Control": FRESH, "Vary": "*"}, "uncacheable (vary *)"),
    "short": (200, {"Cache-Control": SHORT}, "filled"),
    "swr": (200, {"Cache-Control": SHORT + ", stale-while-revalidate=30"}, "filled"),
    "large": (200, {"Cache-Control": FRESH}, "filled"),
    "missing": (404, {"Cache-Control": FRESH}, "failed (status 404)"),
    "broken": (500, {}, "failed (status 500)"),
}
# What an advice asks for, as a change of the origin's headers.
CURES = {
    "no-store": lambda advice: {"Cache-Control": quoted(advice, r"public, max-age=\d+")},
    "private": lambda advice: {"Cache-Control": quoted(advice, r"public, max-age=\d+")},
    "no-cache": lambda advice: {"Cache-Control": quoted(advice, r"max-age=\d+")},
    "zero": lambda advice: {"Cache-Control": quoted(advice, r"max-age=3\d+")},
    "cookie": lambda advice: quoted(advice, "without Set-Cookie") and {"Set-Cookie": None},
    "vary-any": lambda advice: {"Vary": quoted(advice, r"(?<=Vary: )Accept-Encoding")},
}


class Failure(Exception):
    """Something is not as it must be."""


def require(condition, text):
    if not condition:
        raise Failure(text)


def quoted(advice, pattern):
    """What the advice has of this pattern."""
    found = re.search(pattern, advice)
    require(found, f"the advice says nothing of {pattern}: {advice}")
    return found[0]


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def wait_for(what, check, seconds=PATIENCE_SECONDS):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = check()
        if found:
            return found
        time.sleep(0.05)
    raise Failure(f"not within {seconds} s: {what}")


class Origin(http.server.ThreadingHTTPServer):
    """Answers /KIND/ANYTHING as KINDS says, but for what was changed, and counts."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.port = self.server_address[1]
        self.asked = collections.Counter()
        self.changed = {}
        self.versions = collections.defaultdict(lambda: "1")
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_):
        """A cache may hang up whenever it likes."""


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        origin, kind = self.server, self.path.split("/")[1]
        status, headers, _ = KINDS.get(kind, (404, {}, None))
        origin.asked[self.path] += 1
        headers = {**headers, "ETag": f'"{origin.versions[self.path]}"', **origin.changed.get(self.path, {})}
        body = LARGE if kind == "large" else BODY
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            # A cache that has seen enough hangs up.
            self.close_connection = True

    def log_message(self, *_):
        pass


class Cache:
    """One cache in a folder of its own, gone with `stop`."""

    # What its log's words mean: hit, stale, or anything else for what went to the origin.
    words = {}
    arguments = []

    def __init__(self, folder, origin):
        self.folder, self.origin, self.port = folder, origin, free_port()
        self.log = folder / "access.log"
        self.processes = []
        self.read = 0
        folder.mkdir(mode=0o777)
        folder.chmod(0o777)

    def start(self, *command, **options):
        out = open(self.folder / "output.txt", "ab")
        self.processes.append(subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, **options))

    def is_up(self):
        for process in self.processes:
            if process.poll() is not None:
                text = (self.folder / "output.txt").read_text(errors="replace")
                raise Failure(f"{type(self).__name__} ended with {process.returncode}: {text[-3000:]}")
        try:
            return self.get("/missing/up")[0] == 404
        except OSError:
            return False

    def run(self):
        self.launch()
        wait_for(f"{type(self).__name__} answers", self.is_up)
        # Varnish's log is a program of its own, which may be late.
        wait_for(f"{type(self).__name__} logs", lambda: self.get("/missing/up") and self.lines())
        # A probe may be logged late.
        time.sleep(self.log_delay)
        self.lines()

    log_delay = 0.2

    def stop(self):
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def get(self, path):
        """What another client gets."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
        headers = {"Host": HOST, "Accept-Encoding": "gzip, deflate, br, zstd", "Connection": "close"}
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        body = response.read()
        connection.close()
        return response.status, len(body)

    def lines(self):
        """The lines that are new in the log: path, what was done, the whole line."""
        if not self.log.exists():
            return []
        text = self.log.read_bytes()[self.read:].decode(errors="replace")
        whole = text[:text.rfind("\n") + 1]
        self.read += len(whole.encode())
        return [(path, word, line) for line in whole.splitlines() for path, word in [line.split()[:2]]]

    def done(self, path, count):
        """What the cache did for the last `count` requests of this path, once it has told of them."""
        found = []

        def enough():
            found.extend(line for line in self.lines() if line[0] == path)
            return len(found) >= count

        wait_for(f"{type(self).__name__} tells of {count} requests for {path}, not of {found}", enough)
        require(len(found) == count, f"{path}: {count} requests, but the log has {found}")
        return [(self.meaning(word, line), line) for _, word, line in found]

    def meaning(self, word, _line):
        return self.words.get(word, "asked")


class Nginx(Cache):
    words = {"HIT": "hit", "REVALIDATED": "hit", "STALE": "stale", "UPDATING": "stale"}
    arguments = ["--cache-status-header", "X-Cache-Status"]
    status_header = "add_header X-Cache-Status $upstream_cache_status always;"

    def configure(self, header):
        (self.folder / "nginx.conf").write_text(f"""
            daemon off; user root; worker_processes 1; pid {self.folder}/nginx.pid; error_log {self.folder}/error.log;
            events {{}}
            http {{
                log_format told '$request_uri $upstream_cache_status $body_bytes_sent';
                access_log {self.log} told;
                client_body_temp_path {self.folder}/body; proxy_temp_path {self.folder}/proxy;
                fastcgi_temp_path {self.folder}/fastcgi; uwsgi_temp_path {self.folder}/uwsgi; scgi_temp_path {self.folder}/scgi;
                proxy_cache_path {self.folder}/cache keys_zone=edge:1m;
                map $upstream_http_content_length $is_too_large {{ default 0; "~^\\d{{7,}}$" 1; }}
                server {{
                    listen 127.0.0.1:{self.port};
                    location / {{
                        proxy_pass http://127.0.0.1:{self.origin.port};
                        proxy_cache edge; proxy_cache_background_update on;
                        proxy_no_cache $is_too_large;
                        {header}
                    }}
                }}
            }}""")

    def launch(self):
        self.configure(self.status_header)
        self.start("nginx", "-p", str(self.folder), "-c", str(self.folder / "nginx.conf"))

    def reload(self):
        before = self.children()
        subprocess.run(["nginx", "-p", str(self.folder), "-c", str(self.folder / "nginx.conf"), "-s", "reload"],
                       check=True, capture_output=True)
        # A worker of before may take a connection until it has gone.
        wait_for("nginx has changed its workers", lambda: self.children() - before and not self.children() & before)

    def children(self):
        master = self.processes[-1].pid
        return set(pathlib.Path(f"/proc/{master}/task/{master}/children").read_text().split())


class Varnish(Cache):
    words = {"hit": "hit"}

    def launch(self):
        (self.folder / "edge.vcl").write_text(f"""
            vcl 4.1;
            import std;
            backend origin {{ .host = "127.0.0.1"; .port = "{self.origin.port}"; }}
            sub vcl_backend_response {{
                if (std.integer(beresp.http.Content-Length, 0) > {LIMIT_BYTES}) {{
                    set beresp.uncacheable = true;
                    return (deliver);
                }}
            }}
            sub vcl_deliver {{ std.log("left:" + obj.ttl); }}
            """)
        name = str(self.folder / "varnish")
        self.start("varnishd", "-j", "none", "-F", "-n", name, "-a", f"127.0.0.1:{self.port}",
                   "-f", str(self.folder / "edge.vcl"), "-s", "malloc,64m")
        wait_for("varnishd's shared memory", lambda: (self.folder / "varnish" / "_.vsm_child").exists())
        # -q keeps the requests that varnishd makes itself out.
        self.start("varnishncsa", "-n", name, "-c", "-w", str(self.log), "-t", "off",
                   "-F", "%U %{Varnish:handling}x %{VCL_Log:left}x %b")

    def meaning(self, word, line):
        """A hit in grace is none that is fresh."""
        left = float(line.split()[2]) if word == "hit" else 0
        return "stale" if word == "hit" and left <= 0 else super().meaning(word, line)


class Squid(Cache):
    words = {"TCP_HIT": "hit", "TCP_MEM_HIT": "hit", "TCP_REFRESH_FAIL_OLD": "stale", "TCP_REFRESH_UNMODIFIED": "renewed"}

    def launch(self):
        (self.folder / "squid.conf").write_text(f"""
            http_port 127.0.0.1:{self.port} accel defaultsite={HOST}
            cache_peer 127.0.0.1 parent {self.origin.port} 0 no-query no-digest originserver name=origin
            http_access allow all
            cache_mem 64 MB
            maximum_object_size_in_memory {LIMIT_BYTES >> 10} KB
            maximum_object_size {LIMIT_BYTES >> 10} KB
            logformat told %>rp %Ss %<st
            access_log stdio:{self.log} logformat=told
            cache_log {self.folder}/cache.log
            cache_store_log none
            pid_filename {self.folder}/squid.pid
            coredump_dir {self.folder}
            visible_hostname edge.example.com
            shutdown_lifetime 1 second
            netdb_filename none
            """)
        # Else a look that is left in the middle has a word of its own.
        self.words = {**self.words, **{f"{word}_ABORTED": meaning for word, meaning in self.words.items()}}
        self.start("squid", "-N", "-f", str(self.folder / "squid.conf"), "-n", "cdnwarm" + str(self.port))


class TrafficServer(Cache):
    words = {"TCP_HIT": "hit", "TCP_MEM_HIT": "hit", "TCP_REFRESH_HIT": "renewed", "TCP_REF_FAIL_HIT": "stale"}
    arguments = ["--cdn", "trafficserver"]
    log_delay = 2

    def launch(self):
        places = {name: self.folder / name for name in ("sysconfdir", "datadir", "localstatedir", "runtimedir", "logdir", "cachedir")}
        for place in places.values():
            place.mkdir()
        installed = {"prefix": "/usr", "exec_prefix": "/usr", "bindir": "/usr/bin", "sbindir": "/usr/sbin",
                     "includedir": "/usr/include", "libdir": "/usr/lib/trafficserver",
                     "libexecdir": "/usr/lib/trafficserver/modules", "mandir": "/usr/share/man", "infodir": "/usr/share/info"}
        root = self.folder / "runroot.yaml"
        root.write_text("".join(f"{name}: {place}\n" for name, place in {**installed, **places}.items()))
        config = places["sysconfdir"]
        self.log = places["logdir"] / "told.log"
        (config / "records.config").write_text("\n".join(f"CONFIG proxy.config.{line}" for line in [
            f"http.server_ports STRING {self.port}:ip-in=127.0.0.1",
            "admin.user_id STRING #-1",
            "crash_log_helper STRING NULL",
            f"cache.max_doc_size INT {LIMIT_BYTES}",
            "log.logging_enabled INT 3",
            "log.max_secs_per_buffer INT 1",
            "log.periodic_tasks_interval INT 1",
            "http.insert_response_via_str INT 1",
            "reverse_proxy.enabled INT 1",
            "url_remap.remap_required INT 1",
            "url_remap.pristine_host_hdr INT 1",
        ]) + "\n")
        (config / "remap.config").write_text(f"map / http://127.0.0.1:{self.origin.port}/\n")
        (config / "ip_allow.yaml").write_text(
            "ip_allow:\n- {apply: in, ip_addrs: 127.0.0.1, action: allow, methods: ALL}\n")
        (config / "plugin.config").write_text("xdebug.so\n")
        (config / "storage.config").write_text(f"{places['cachedir']} 64M\n")
        (config / "logging.yaml").write_text(
            "logging:\n  formats:\n  - name: told\n    format: '/%<cqup> %<crc> %<pscl>'\n"
            "  logs:\n  - mode: ascii\n    filename: told\n    format: told\n")
        self.start("traffic_server", f"--run-root={root}")


CACHES = [Nginx, Varnish, Squid, TrafficServer]


class Run:
    """All looks at one cache."""

    def __init__(self, binary, cache):
        self.binary, self.cache = binary, cache
        self.names = iter(range(1_000_000))
        self.looks = 0
        self.told = collections.Counter()

    def path(self, kind):
        return f"/{kind}/{next(self.names)}"

    def check(self, path, *arguments, own=True):
        """The JSON that `cdnwarm check` prints for this path, held against the cache's log."""
        command = [self.binary, "check", "--json", "--connect-to", f"*=127.0.0.1:{self.cache.port}",
                   *(self.cache.arguments if own else []), *arguments, f"http://{HOST}{path}"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CDNWARM_")}
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
        require(result.stdout, f"{command}: {result.stderr}")
        told = [json.loads(line) for line in result.stdout.splitlines()]
        verdicts = [shown(outcome) for outcome in told]
        require((result.returncode == 0) == (verdicts[-1] == "warm"), f"status {result.returncode}, but {verdicts}")
        done = self.cache.done(path, sum(len(outcome["looks"]) for outcome in told))
        looks = [look for outcome in told for look in outcome["looks"]]
        for look, (meaning, line) in zip(looks, done):
            self.looks += 1
            self.told[f"{line.split()[1]} {look['verdict']}"] += 1
            if own and not look["verdict"].startswith("failed"):
                age, lifetime = (look.get("cache", {}).get("age_s", 0), look["read"].get("cache-control", ""))
                # Its last second is over by RFC 9111, section 4.2; caches that count whole seconds serve it all the same.
                is_over = f"max-age={age}" in lifetime.split(", ")
                fits = {
                    "hit": ["warm"] + ["stale"] * is_over,
                    "stale": ["stale"],
                    # Confirmed or fetched anew just now: to be had fresh, but not from the cache alone.
                    "renewed": ["warm", "filled"] + [v for v in [look["verdict"]] if v.startswith("uncacheable")],
                }.get(meaning)
                is_right = look["verdict"] in fits if fits else look["verdict"] not in ("warm", "stale")
                require(is_right, f"{path}: the log says {line!r}, the verdict is {look['verdict']}: {look}")
        return told[-1]

    def after(self, path):
        """What the cache does for the next viewer."""
        self.cache.get(path)
        return self.cache.done(path, 1)[0][0]

    def every_kind(self):
        for kind, (status, _, first) in KINDS.items():
            # Plainly, and once more.
            path = self.path(kind)
            found = shown(self.check(path))
            require(found == first, f"{path}: {found} instead of {first}")
            again = shown(self.check(path))
            print(f"  {kind:10} {found}, then {again}", end="", flush=True)
            # Looked at again by the same call: what it says then is what the next viewer meets.
            path = self.path(kind)
            certified = shown(self.check(path, "--certify"))
            print(f"; certified: {certified}", end="", flush=True)
            if kind in ("short", "swr"):
                # May have expired between two looks, on a slow machine.
                require(certified in ("warm", "filled", "stale"), f"{path}: {certified}")
            else:
                require(certified not in ("filled", "fetched"), f"{path}: still {certified}")
            if kind not in ("short", "swr") and status == 200:
                next_one = self.after(path)
                require((certified == "warm") == (next_one == "hit"), f"{path}: {certified}, but next {next_one}")
            self.skipped(kind, path, certified)

    def skipped(self, kind, path, certified):
        if kind in ("short", "swr"):
            path = self.path(kind)
            self.check(path)
        told = self.check(path, "--skip-warm")
        print(f"; skipped: {shown(told)}, {told.get('bytes_saved', 0)} bytes unread")
        if told["verdict"] == "warm":
            require((told["bytes"], told["bytes_saved"]) == (0, len(BODY)), f"{path}: {told}")
            if kind not in ("short", "swr"):
                require(certified == "warm", f"{path}: warm, but certified {certified}")
                require(shown(self.check(path)) == "warm", f"{path}: no longer warm after a cancelled look")
        elif told["verdict"] != "failed":
            require(told["bytes"] in (len(BODY), len(LARGE)) and "bytes_saved" not in told, f"{path}: {told}")

    def expiry(self):
        """What has expired is asked for anew, or served stale and called so."""
        for kind in ("short", "swr"):
            path = self.path(kind)
            self.check(path, "--certify")
            time.sleep(3.2)
            expired = shown(self.check(path))
            later = shown(self.check(path, "--certify"))
            print(f"  {kind:10} after its lifetime: {expired}, then {later}")
            require(expired != "warm", f"{path}: {expired}")

    def versions(self):
        """The origin has a new version, and the edge the old one."""
        path = self.path("cacheable")
        require(shown(self.check(path, "--certify")) == "warm", path)
        self.cache.origin.versions[path] = "2"
        expected = ["--option", "warm-expect-etag=2"]
        for more in ([], ["--certify"], ["--skip-warm"]):
            found = shown(self.check_raw(path, *expected, *more))
            require(found == 'wrong-version (etag "1" instead of "2")', f"{path}: {found}")
        print(f"  versions   {found}")

    def check_raw(self, path, *arguments):
        told = self.check(path, *arguments, own=False) if not self.cache.arguments else self.unjudged(path, *arguments)
        return told

    def unjudged(self, path, *arguments):
        own, self.cache.words = self.cache.words, dict.fromkeys(self.cache.words, "any")
        try:
            return self.check(path, *arguments)
        finally:
            self.cache.words = own

    def advice(self):
        """What the advice asks of the origin is done, and the URL is warm."""
        for kind, cure in CURES.items():
            path = self.path(kind)
            told = self.check(path, "--certify")
            if told["verdict"] == "warm":
                continue
            self.cache.origin.changed[path] = cure(told["advice"])
            cured = shown(self.check(path, "--certify"))
            require(cured == "warm", f"{path}: {cured} after the advice: {told['advice']}")
            print(f"  advice     {shown(told)}, then {self.cache.origin.changed[path]}: {cured}")

    def silence(self):
        """nginx without its header: the advice on that is followed too."""
        cache = self.cache
        path = self.path("cacheable")
        cache.configure("")
        cache.reload()
        wait_for("nginx without its header", lambda: "X-Cache-Status" not in headers_of(cache))
        cache.lines()
        told = self.check(path, own=False)
        require(told["verdict"] == "fetched", told)
        cache.configure(quoted(told["advice"], r"add_header [^;]*;"))
        cache.reload()
        wait_for("nginx with its header", lambda: "X-Cache-Status" in headers_of(cache))
        cache.lines()
        named = quoted(told["advice"], "--cache-status-header")
        cured = shown(self.check(path, named, "X-Cache-Status", own=False))
        require(cured == "warm", cured)
        print(f"  advice     fetched without a header, then {cured}")


def headers_of(cache):
    connection = http.client.HTTPConnection("127.0.0.1", cache.port, timeout=PATIENCE_SECONDS)
    connection.request("GET", "/missing/header", headers={"Host": HOST, "Connection": "close"})
    response = connection.getresponse()
    response.read()
    connection.close()
    return dict(response.getheaders())


def shown(outcome):
    reason = outcome.get("reason")
    return outcome["verdict"] + (f" ({reason})" if reason else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", required=True)
    parser.add_argument("--only", choices=[cache.__name__.lower() for cache in CACHES])
    parser.add_argument("--keep", action="store_true", help="leave the folder with logs and configurations")
    arguments = parser.parse_args()
    # A stop ends the caches too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    binary = str(pathlib.Path(arguments.binary).resolve())
    folder = pathlib.Path(tempfile.mkdtemp(prefix="cdnwarm-caches.", dir=open_to_all()))
    folder.chmod(0o777)
    chosen = [kind for kind in CACHES if arguments.only in (None, kind.__name__.lower())]
    try:
        failed = sum(not holds(kind, folder, binary) for kind in chosen)
    finally:
        if arguments.keep:
            print(folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(chosen) - failed} passed, {failed} failed")
    return 1 if failed else 0


def open_to_all():
    """Where temporary files are, if everybody may go there: caches run as users of their own."""
    folder = pathlib.Path(tempfile.gettempdir())
    is_open = all(above.stat().st_mode & 0o001 for above in (folder, *folder.parents))
    return folder if is_open else pathlib.Path("/var/tmp")


def holds(kind, folder, binary):
    """Whether all that is said of one kind of cache is so."""
    cache = kind(folder / kind.__name__.lower(), Origin())
    print(f"{kind.__name__}", flush=True)
    try:
        cache.run()
        run = Run(binary, cache)
        run.every_kind()
        run.expiry()
        run.versions()
        run.advice()
        if kind is Nginx:
            run.silence()
    except (Failure, FileNotFoundError, subprocess.SubprocessError) as error:
        print(f"\nFAILED {kind.__name__}: {error}", file=sys.stderr)
        return False
    finally:
        cache.stop()
    print(f"  {run.looks} looks, each as the log has it: {dict(sorted(run.told.items()))}")
    return True


if __name__ == "__main__":
    sys.exit(main())
