"""A TCP proxy on a thread of its own that can cut, stall, delay and half-close what goes through it."""

import asyncio
import socket
import threading


class Proxy:
    """Listens on a free port of the loopback interface; where it leads to is told later.

    `mode` is `pass`, `cut` (connections are closed, new ones at once), `stall` (connections stay, nothing moves) or
    `delay`. All methods may be called from any thread.
    """

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.target_port = None
        self.delay_ms = 0
        self.connections = set()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self.mode = "pass"

    def __enter__(self):
        self.moving = asyncio.Event()
        self.moving.set()
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.listener.close()

    def pass_on(self):
        self._do(self._set_mode, "pass")

    def cut(self):
        self._do(self._set_mode, "cut")

    def stall(self):
        self._do(self._set_mode, "stall")

    def delay(self, milliseconds):
        self.delay_ms = milliseconds
        self._do(self._set_mode, "delay")

    def half_close(self):
        """Ends what the broker says on every open connection; what clients say still arrives there."""
        self._do(self._half_close)

    def _do(self, what, *arguments):
        self.loop.call_soon_threadsafe(what, *arguments)

    def _set_mode(self, mode):
        self.mode = mode
        if mode == "stall":
            self.moving.clear()
        else:
            self.moving.set()
        if mode == "cut":
            for connection in list(self.connections):
                for writer in connection:
                    writer.transport.abort()

    def _half_close(self):
        for client, _server in list(self.connections):
            if client.can_write_eof() and not client.is_closing():
                client.write_eof()

    def _run(self):
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(asyncio.start_server(self._serve, sock=self.listener))
        self.loop.run_forever()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0))

    async def _serve(self, client_reader, client):
        if self.mode == "cut" or self.target_port is None:
            client.transport.abort()
            return
        try:
            server_reader, server = await asyncio.open_connection("127.0.0.1", int(self.target_port))
        except OSError:
            client.transport.abort()
            return
        connection = (client, server)
        self.connections.add(connection)
        try:
            await asyncio.gather(self._copy(client_reader, server), self._copy(server_reader, client))
        except ConnectionAbortedError:
            pass
        finally:
            self.connections.discard(connection)
            client.transport.abort()
            server.transport.abort()

    async def _copy(self, reader, writer):
        """Moves bytes one way until they end; the other way may go on, as TCP allows."""
        try:
            while data := await reader.read(1 << 16):
                await self.moving.wait()
                if self.mode == "delay":
                    await asyncio.sleep(self.delay_ms / 1000)
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof() and not writer.is_closing():
                writer.write_eof()
        except (OSError, RuntimeError):
            # One direction is broken: end the other, too.
            writer.transport.abort()
            raise ConnectionAbortedError from None
