"""The push endpoints that are compared: what each needs first, and how it is started."""

import contextlib
import http.client

from stage import ACCOUNT, AUDIENCE, HERE, HOST, Process, free_port, nginx, run, wait_until

LUA_MODULES = ("load_module /usr/lib/nginx/modules/ndk_http_module.so;\n"
               "load_module /usr/lib/nginx/modules/ngx_http_lua_module.so;")


class Contestant:
    """An endpoint by name. `start` gives a running Process that listens at `address`."""

    # What it takes part in beyond plain pushes over HTTP/1.1.
    speaks_h2c = speaks_tls = drops_bodies = True
    # Far slower ones get fewer connections and bodies than would take for ever.
    is_slow = False

    def __init__(self, name):
        self.name = name

    def prepare(self, work):
        """Builds or fetches what it is made of."""

    def start(self, stage, folder, kind, tls=False):
        """Starts it for URLs of one kind; the caller ends it."""
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        folder.mkdir(parents=True, exist_ok=True)
        return self.launch(stage, folder, kind, tls)

    def launch(self, stage, folder, kind, tls):
        """The process."""
        raise NotImplementedError

    @contextlib.contextmanager
    def running(self, stage, folder, kind="hit", tls=False):
        """Running, and answering."""
        with self.start(stage, folder, kind, tls) as process:
            wait_until(f"{self.name} answers", self.answers, 30, process, every_seconds=0.01)
            yield process

    def answers(self):
        """Whether it answers at all; a listening socket alone may have nobody behind it yet."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/nothing")
            connection.getresponse().read()
        except OSError:
            return False
        except http.client.BadStatusLine:
            # It speaks HTTP/2 alone.
            return True
        finally:
            connection.close()
        return True


class Cdnwarm(Contestant):
    """`cdnwarm serve` with everything on: guard, verdict, tokens, metrics, and a line for each URL into a file."""

    def __init__(self, name, binary, options=()):
        super().__init__(name)
        self.binary, self.options = binary, options

    def launch(self, stage, folder, kind, tls):
        edge = stage.edge_port(kind, tls)
        command = [self.binary, "serve", "--listen", "127.0.0.1", "--port", self.port, "--push-audience", AUDIENCE,
                   "--push-service-account", ACCOUNT, "--push-jwks-url", stage.certs_url, "--region", "bench",
                   "--connect-to", f"{HOST}=127.0.0.1:{edge}", "--cache-status-header", "x-cache-status",
                   "--metrics-addr", f"127.0.0.1:{free_port()}", *self.options]
        environment = {"SSL_CERT_FILE": str(stage.roots), "GCE_METADATA_HOST": "127.0.0.1:1"}
        return Process(self.name, command, folder / "output.log", environment)

    def answers(self):
        """Whether it has its keys, too."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


class Proxy(Contestant):
    """nginx's proxy_pass with kept connections: relays the edge's answer and does not look into the envelope."""

    drops_bodies = False

    def launch(self, stage, folder, kind, tls):
        edge, scheme = stage.edge_port(kind, tls), "https" if tls else "http"
        return nginx(self.name, folder, "auto", f"""
  upstream edge {{ server 127.0.0.1:{edge}; keepalive 512; }}
  server {{
    listen 127.0.0.1:{self.port} backlog=4096 {_h2c(kind)};
    location = / {{
      proxy_method GET;
      proxy_pass_request_body off;
      proxy_pass_request_headers off;
      proxy_set_header Content-Length "";
      proxy_set_header Host {HOST};
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_ssl_name {HOST};
      proxy_ssl_server_name on;
      proxy_ssl_verify on;
      proxy_ssl_trusted_certificate {stage.roots};
      proxy_pass {scheme}://edge/{kind.removesuffix('-h2c')}/$request_id;
    }}
  }}""")


class Lua(Contestant):
    """nginx with Lua, which does the whole job."""

    def launch(self, stage, folder, kind, tls):
        return nginx(self.name, folder, "auto", f"""
  lua_ssl_trusted_certificate {stage.roots};
  lua_ssl_verify_depth 2;
  lua_socket_log_errors off;
  server {{
    listen 127.0.0.1:{self.port} backlog=4096 {_h2c(kind)};
    location = / {{
      set $edge_port {stage.edge_port(kind, tls)};
      content_by_lua_file {HERE}/nginx.lua;
    }}
  }}""", LUA_MODULES)


class Go(Contestant):
    """Go's net/http, which does the whole job."""

    def prepare(self, work):
        self.binary = work / "go-push"
        run(["go", "build", "-o", self.binary, "."], cwd=HERE / "go")

    def launch(self, stage, folder, kind, tls):
        edge = stage.edge_port(kind, tls)
        return Process(self.name, [self.binary, self.address, f"127.0.0.1:{edge}", stage.roots],
                       folder / "output.log")


class Flask(Contestant):
    """Flask under gunicorn, one worker with one thread, requests.get for each URL."""

    speaks_h2c = speaks_tls = False
    is_slow = True

    def prepare(self, work):
        venv = work / "venv"
        self.gunicorn = venv / "bin" / "gunicorn"
        if not self.gunicorn.exists():
            run(["/usr/bin/python3", "-m", "venv", venv])
            run([venv / "bin" / "python", "-m", "pip", "install", "--quiet", "-r", HERE / "flask" / "requirements.txt"])

    def launch(self, stage, folder, kind, tls):
        return Process(self.name, [self.gunicorn, "--bind", self.address, "--workers", "1", "--threads", "1", "--chdir",
                                   HERE / "flask", "app:app"],
                       folder / "output.log", {"EDGE": f"127.0.0.1:{stage.edge_port(kind, tls)}"})


def every_contestant(binary, options, before=None):
    """All of them by name, the fastest first; `before` is an earlier cdnwarm to compare with."""
    earlier = [Cdnwarm("before", before, options)] if before else []
    return {contestant.name: contestant for contestant in (
        Cdnwarm("cdnwarm", binary, options), *earlier, Proxy("nginx-proxy"), Lua("nginx-lua"), Go("go"), Flask("flask"))}


def _h2c(kind):
    # This nginx speaks one of both on a port.
    return "http2" if kind.endswith("-h2c") else ""
