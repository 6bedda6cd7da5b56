#!/usr/bin/env python3
"""Pushes every URL of the corpora to the built `serve`, in a network namespace where every address is this machine.

There, one name server answers as tests/corpora/ssrf_dns.txt says, one origin with a CA of its own answers on the ports
80 and 443 of every address, and listeners on the other ports of the corpora, and a proxy that the environment names, are
canaries. What is allowed must be fetched from a public address; what is not must be refused without a connection.

    tests/network/guard.py --binary target/debug/cdnwarm

Needs root or user namespaces, util-linux (unshare), iproute2 (ip), openssl and IPv6 on loopback.
"""

import argparse
import base64
import collections
import http.client
import ipaddress
import json
import os
import pathlib
import queue
import re
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time

CORPORA = pathlib.Path(__file__).resolve().parent.parent / "corpora"
# Where the name server listens: as public as any other address, so that loopback's own ports stay canaries.
NAME_SERVER = "9.9.9.9"
PUBLIC = "93.184.215.14"
# What the hosts file says beside localhost.
HOSTS = {"here.example.com": "93.184.215.15", "inside.example.com": "10.0.0.5"}
PROXY_PORT = 3128
SERVE_PORT = 18080
# A port that no URL of the corpora has, for the operator's lists.
LISTED_PORT = 8000
# For one push; the answer to most takes a few milliseconds.
PATIENCE_SECONDS = 30
ROUNDS_OF_REBINDING = 4
ESCAPES = {"<SP>": " ", "<TAB>": "\t", "<LF>": "\n", "<CR>": "\r", "<NUL>": "\0"}


class Failure(Exception):
    """Something is not as it must be."""


def rows(name):
    """The rows of a corpus, split at tabs, with its characters put in and without its headings."""
    text = (CORPORA / name).read_text()
    return [[unescaped(field) for field in line.split("\t")]
            for line in text.split("\n") if line and not line.startswith("# ")]


def unescaped(text):
    for name, character in ESCAPES.items():
        text = text.replace(name, character)
    return text


SPECIAL = [ipaddress.ip_network(row[0]) for row in rows("special_ips.txt") if row[8] != "embedded"]


def is_public(address):
    """Whether the origin at this address may be asked at all."""
    address = ipaddress.ip_address(address)
    address = getattr(address, "ipv4_mapped", None) or address
    return not any(address in network for network in SPECIAL)


class NameServer(threading.Thread):
    """Answers over UDP; a name has one answer, or several that successive questions of a kind get in turn."""

    def __init__(self):
        super().__init__(daemon=True)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((NAME_SERVER, 53))
        self.names = {row[0].rstrip("."): [row[1].split(",")] for row in rows("ssrf_dns.txt")}
        for url, answers, *_ in rows("ssrf_rebind.txt"):
            self.names[url.split("/")[2]] = [answer.split(",") for answer in answers.split("|")]
        self.asked = collections.Counter()

    def run(self):
        while True:
            packet, sender = self.socket.recvfrom(4096)
            self.socket.sendto(self.answer(packet), sender)

    def answer(self, packet):
        labels, at = [], 12
        while packet[at]:
            labels.append(packet[at + 1:at + 1 + packet[at]].decode("ascii").lower())
            at += 1 + packet[at]
        kind = struct.unpack("!H", packet[at + 1:at + 3])[0]
        name = ".".join(labels)
        answers = self.names.get(name, [[PUBLIC]])
        addresses = answers[min(self.asked[name, kind], len(answers) - 1)]
        self.asked[name, kind] += 1
        family, length = {1: (4, 4), 28: (6, 16)}.get(kind, (0, 0))
        found = [ipaddress.ip_address(address) for address in addresses]
        found = [address.packed for address in found if address.version == family]
        # The question's name is at offset 12 of the packet.
        records = b"".join(struct.pack("!HHHIH", 0xC00C, kind, 1, 60, length) + address for address in found)
        header = packet[:2] + struct.pack("!HHHHH", 0x8180, 1, len(found), 0, 0)
        return header + packet[12:at + 5] + records


class Authority:
    """A CA, and the certificates that it signs for whatever is asked for."""

    def __init__(self, folder):
        self.folder = folder
        self.contexts = {}
        self.lock = threading.Lock()
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        self.openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=test CA")
        self.openssl("req", *key, "-keyout", "leaf.key", "-out", "leaf.csr", "-subj", "/CN=leaf")

    def openssl(self, *arguments):
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True, timeout=60)

    def context(self, name):
        """A server's TLS context for this host name or address."""
        with self.lock:
            if name not in self.contexts:
                kind = "IP" if re.fullmatch(r"[0-9.]+|.*:.*", name) else "DNS"
                (self.folder / "leaf.ext").write_text(f"subjectAltName={kind}:{name}\n")
                self.openssl("x509", "-req", "-in", "leaf.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                             "-days", "1", "-out", "leaf.pem", "-extfile", "leaf.ext")
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(self.folder / "leaf.pem", self.folder / "leaf.key")
                self.contexts[name] = context
            return self.contexts[name]

    def any_context(self):
        """One that turns into the asked host's, or the connection's own address's, within the handshake."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sni_callback = self.choose
        # A handshake needs some certificate to start from.
        self.context("example.com")
        context.load_cert_chain(self.folder / "leaf.pem", self.folder / "leaf.key")
        return context

    def choose(self, connection, name, _context):
        connection.context = self.context(name or plain(connection.getsockname()[0]))


def plain(address):
    """The address without the IPv6 form of an IPv4 one, and without a zone."""
    address = address.split("%")[0]
    mapped = ipaddress.ip_address(address)
    return str(getattr(mapped, "ipv4_mapped", None) or mapped)


class Internet:
    """Listeners on these ports of every address; 80 and 443 answer over HTTP, with and without TLS."""

    def __init__(self, authority, ports):
        self.tls = authority.any_context()
        # Every connection that was opened: address and port that it was meant for.
        self.connections = queue.SimpleQueue()
        self.requests = queue.SimpleQueue()
        # The answers to the next requests: status and Location.
        self.script = collections.deque()
        for port in ports:
            listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
            threading.Thread(target=self.accept, args=(listener, port), daemon=True).start()

    def accept(self, listener, port):
        while True:
            connection, _ = listener.accept()
            self.connections.put((plain(connection.getsockname()[0]), port))
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        try:
            connection.settimeout(PATIENCE_SECONDS)
            # A TLS connection starts with a handshake record, type 22; HTTP with a letter.
            if connection.recv(1, socket.MSG_PEEK) == b"\x16":
                connection = self.tls.wrap_socket(connection, server_side=True)
            head = b""
            while b"\r\n\r\n" not in head:
                more = connection.recv(65536)
                if not more:
                    return
                head += more
            self.requests.put(head.split(b"\r\n")[0].decode("latin-1"))
            status, location = self.script.popleft() if self.script else (200, None)
            lines = [f"HTTP/1.1 {status} Scripted", "Connection: close", "Content-Length: 0"]
            if location is not None:
                # As it stands in the corpus, and be it no valid header.
                lines.append(f"Location: {location}")
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
        except (OSError, ssl.SSLError):
            # The other side may give up; what it got so far counts.
            pass
        finally:
            connection.close()

    def seen(self):
        """The connections and requests since the last call."""
        return drained(self.connections), drained(self.requests)


def drained(source):
    items = []
    while not source.empty():
        items.append(source.get())
    return items


class Serve:
    """The built binary, with a proxy in its environment."""

    def __init__(self, binary, ca, *arguments):
        environment = {name: f"http://127.0.0.1:{PROXY_PORT}" for proxy in ("http_proxy", "https_proxy", "all_proxy")
                       for name in (proxy, proxy.upper())}
        environment |= {"PATH": os.environ["PATH"], "SSL_CERT_FILE": str(ca)}
        command = [binary, "serve", "--listen", "127.0.0.1", "--port", str(SERVE_PORT), "--region", "here",
                   "--insecure-accept-unauthenticated", "--malformed", "ack", "--log-format", "json", *arguments]
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, text=True)
        self.lines = queue.SimpleQueue()
        self.number = 0
        threading.Thread(target=self.read, daemon=True).start()
        self.line(lambda line: "addr" in line)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(PATIENCE_SECONDS)

    def read(self):
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def line(self, wanted):
        """The next log line of this kind."""
        deadline, said = time.monotonic() + PATIENCE_SECONDS, []
        while True:
            try:
                said.append(self.lines.get(timeout=max(0, deadline - time.monotonic())))
            except queue.Empty:
                raise Failure("serve did not say it, but:\n" + "".join(said)) from None
            if not said[-1]:
                raise Failure("serve ended:\n" + "".join(said))
            try:
                line = json.loads(said[-1])
            except ValueError:
                continue
            if wanted(line):
                return line

    def push(self, url):
        """The outcome for this URL, pushed as Pub/Sub would."""
        self.number += 1
        message_id = f"m{self.number}"
        message = {"data": base64.b64encode(url.encode()).decode(), "messageId": message_id}
        connection = http.client.HTTPConnection("127.0.0.1", SERVE_PORT, timeout=PATIENCE_SECONDS)
        connection.request("POST", "/", json.dumps({"message": message, "subscription": "s"}))
        status = connection.getresponse().status
        connection.close()
        if status != 204:
            raise Failure(f"{url!r} was answered {status}")
        return self.line(lambda line: "verdict" in line and line["id"] == message_id)


def check(condition, *told):
    if not condition:
        raise Failure(" ".join(str(part) for part in told))


def check_canaries(internet):
    """Each kind of canary sees what it is there to see."""
    canaries = [("127.0.0.1", 80), ("::1", 443), ("169.254.169.254", 80), ("10.0.0.5", 6379), ("127.0.0.1", PROXY_PORT)]
    for canary in canaries:
        socket.create_connection(canary, timeout=PATIENCE_SECONDS).close()
        check(internet.connections.get(timeout=PATIENCE_SECONDS) == canary, canary, "was not seen")
    return canaries


def push_urls(serve, internet):
    count = collections.Counter()
    for verdict, url, why in rows("ssrf_urls.txt"):
        outcome = serve.push(url)
        connections, requests = internet.seen()
        told = (url[:200], why, outcome["verdict"], outcome.get("reason"), connections, requests)
        if verdict == "allow":
            check(outcome["verdict"] == "fetched" and len(requests) == 1, "not fetched:", *told)
            check(all(is_public(address) for address, _ in connections), "not public:", *told)
        else:
            check(outcome["verdict"] == "refused", "not refused:", *told)
            check(not connections and not requests, "connected:", *told)
        count[verdict] += 1
    check(sum(count.values()) == 190, "rows:", count)
    print(f"URLs: {count['allow']} allowed and fetched, {count['block']} refused without a connection", flush=True)


def push_redirects(serve, internet):
    count = collections.Counter()
    for verdict, start, chain, why in rows("ssrf_redirects.txt"):
        hops = [hop.split(" ", 1) for hop in chain.split(" > ") if hop != "..."]
        loops = chain.endswith("...") or hops[0][1:] == [start]
        script = [(int(hop[0]), hop[1] if len(hop) > 1 else None) for hop in hops]
        internet.script.extend(script * (20 if loops else 1))
        outcome = serve.push(start)
        internet.script.clear()
        connections, requests = internet.seen()
        told = (chain, why, outcome["verdict"], outcome.get("reason"), connections, requests)
        check(all(is_public(address) and port in (80, 443) for address, port in connections), "connected:", *told)
        if verdict == "allow":
            final = outcome["verdict"] == "fetched" and len(requests) == 2
            check(final or outcome.get("reason") == "status 304", "not followed:", *told)
        else:
            check(outcome["verdict"] == ("failed" if loops else "refused"), "not stopped:", *told)
            check(len(requests) == (6 if loops else 1), "too many hops:", *told)
        count[verdict] += 1
    check(sum(count.values()) == 14, "rows:", count)
    print(f"redirects: {count['allow']} followed or final, {count['block']} stopped where they had to", flush=True)


def push_rebinding(start_serve, internet):
    verdicts = collections.Counter()
    for _ in range(ROUNDS_OF_REBINDING):
        # A new process remembers no address, so that each round is a look-up.
        with start_serve() as serve:
            for url, _answers, never, why in rows("ssrf_rebind.txt"):
                outcome = serve.push(url)
                connections, _ = internet.seen()
                told = (url, why, outcome["verdict"], outcome.get("reason"), connections)
                check(all(address != never and is_public(address) for address, _ in connections), "connected:", *told)
                check(outcome["verdict"] in ("fetched", "refused"), "neither fetched nor refused:", *told)
                verdicts[outcome["verdict"]] += 1
    check(sum(verdicts.values()) == 7 * ROUNDS_OF_REBINDING and len(verdicts) == 2, "rows:", verdicts)
    print(f"rebinding names, {ROUNDS_OF_REBINDING} look-ups each: {dict(verdicts)}, none led where it must not", flush=True)


def push_lists(start_serve, internet):
    """The operator's lists lift the rules where they say so, and nowhere else."""
    lists = ["--allow-address", f"10.0.0.0/8:{LISTED_PORT}", "--allow-host", "private-a.example.com:80", "--only-hosts",
             "10.0.0.5,.example.com"]
    with start_serve(*lists) as serve:
        for url, expected in [
            (f"http://10.0.0.5:{LISTED_PORT}/", [("10.0.0.5", LISTED_PORT)]),
            ("http://private-a.example.com/", [("10.0.0.5", 80)]),
            (f"http://private-a.example.com:{LISTED_PORT}/", [("10.0.0.5", LISTED_PORT)]),
            ("http://10.0.0.5/", []),
            ("http://private-a.example.com:443/", []),
            ("http://broadcast.example.com/", []),
            ("http://example.org/", []),
        ]:
            outcome = serve.push(url)
            connections, _ = internet.seen()
            check(connections == expected, url, outcome["verdict"], outcome.get("reason"), connections)
            check((outcome["verdict"] == "refused") == (not expected), url, outcome["verdict"], outcome.get("reason"))
    print("lists: --allow-address, --allow-host and --only-hosts do what they say", flush=True)


def push_hosts(start_serve, internet):
    """The hosts file goes before the name server, which knows both names as public, and is judged like it."""
    with start_serve() as serve:
        for name, address in HOSTS.items():
            outcome = serve.push(f"http://{name}/")
            connections, _ = internet.seen()
            check(connections == ([(address, 80)] if is_public(address) else []), name, outcome, connections)
            check((outcome["verdict"] == "refused") != is_public(address), name, outcome)
    print("hosts file: its names lead where it says, where that is public", flush=True)


def run(binary, folder):
    for command in (["ip", "link", "set", "lo", "up"], ["ip", "route", "add", "local", "0.0.0.0/0", "dev", "lo"],
                    ["ip", "-6", "route", "add", "local", "::/0", "dev", "lo"]):
        subprocess.run(command, check=True, timeout=60)
    hosts = "".join(f"{address} {name}\n" for name, address in {"localhost": "127.0.0.1", **HOSTS}.items())
    for path, text in [("/etc/resolv.conf", f"nameserver {NAME_SERVER}\n"), ("/etc/hosts", hosts)]:
        own = folder / pathlib.Path(path).name
        own.write_text(text)
        subprocess.run(["mount", "--bind", own, path], check=True, timeout=60)
    NameServer().start()
    texts = [row[1] for row in rows("ssrf_urls.txt")] + [row[2] for row in rows("ssrf_redirects.txt")]
    ports = {int(port) for text in texts for port in re.findall(r"[^:]:([1-9][0-9]{1,4})(?=[/?#]|$)", text)}
    ports = {port for port in ports if port < 65536} | {80, 443, PROXY_PORT, LISTED_PORT}
    authority = Authority(folder)
    internet = Internet(authority, ports)
    canaries = check_canaries(internet)
    print(f"canaries: every address on the ports {sorted(ports)}; tried: {canaries}", flush=True)

    def start_serve(*arguments):
        return Serve(binary, folder / "ca.pem", *arguments)

    with start_serve() as serve:
        push_urls(serve, internet)
        push_redirects(serve, internet)
    push_rebinding(start_serve, internet)
    push_lists(start_serve, internet)
    push_hosts(start_serve, internet)
    print("canaries: 0 connections", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", type=pathlib.Path, required=True, help="the cdnwarm to test")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.inside:
        namespace = ["unshare", "--net", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
        os.execvp(namespace[0], [*namespace, sys.executable, __file__, *sys.argv[1:], "--inside"])
    with tempfile.TemporaryDirectory() as folder:
        try:
            run(options.binary.resolve(), pathlib.Path(folder))
        except Failure as failure:
            sys.exit(f"FAILED {failure}")


if __name__ == "__main__":
    main()
