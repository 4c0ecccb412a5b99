"""A TCP proxy that adds latency: `delay.py UPSTREAM_PORT MILLISECONDS`.

It listens on a free port of 127.0.0.1, prints it, and passes each byte on half of the latency after it arrived, in both
directions and in order. It adds no limit on the rate. Opening a connection is not delayed.
"""

import asyncio
import collections
import selectors
import sys

# Reading pauses while this many bytes of one direction are under way.
UNDER_WAY_BYTES = 16 << 20


class Direction:
    """Bytes from one side, and the side that they go to."""

    def __init__(self, loop, seconds):
        self.loop, self.seconds = loop, seconds
        self.under_way = collections.deque()
        self.bytes = 0
        self.source = self.target = self.timer = None
        self.is_blocked = False

    def arrived(self, data):
        """Takes bytes, or `None` for the end of the stream."""
        self.under_way.append((self.loop.time() + self.seconds, data))
        self.bytes += len(data or b"")
        if self.bytes > UNDER_WAY_BYTES:
            self.source.pause_reading()
        self.schedule()

    def schedule(self):
        if self.under_way and self.target and not self.is_blocked and self.timer is None:
            self.timer = self.loop.call_at(self.under_way[0][0], self.deliver)

    def deliver(self):
        self.timer = None
        while self.under_way and not self.is_blocked and self.under_way[0][0] <= self.loop.time():
            data = self.under_way.popleft()[1]
            if self.target.is_closing():
                continue
            if data is None:
                self.target.close()
            else:
                self.bytes -= len(data)
                self.target.write(data)
        if self.bytes <= UNDER_WAY_BYTES // 2 and not self.source.is_closing():
            self.source.resume_reading()
        self.schedule()


class Side(asyncio.Protocol):
    """One socket: its bytes go to `out`, those of `into` come from the other side."""

    def __init__(self, out, into, connected=None):
        self.out, self.into, self.connected = out, into, connected

    def connection_made(self, transport):
        self.out.source = self.into.target = transport
        self.into.schedule()
        if self.connected:
            self.connected()

    def data_received(self, data):
        self.out.arrived(data)

    def connection_lost(self, error):
        self.out.arrived(None)

    def pause_writing(self):
        self.into.is_blocked = True

    def resume_writing(self):
        self.into.is_blocked = False
        self.into.schedule()


async def serve(upstream, milliseconds):
    loop = asyncio.get_running_loop()
    opening = set()

    def accept():
        there, back = (Direction(loop, milliseconds / 2000) for _ in range(2))

        async def connect():
            try:
                await loop.create_connection(lambda: Side(back, there), "127.0.0.1", upstream)
            except OSError:
                there.source.abort()

        def connected():
            task = loop.create_task(connect())
            opening.add(task)
            task.add_done_callback(opening.discard)

        return Side(there, back, connected)

    server = await loop.create_server(accept, "127.0.0.1", 0, backlog=512)
    print(f"listening on {server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main():
    # Timers of epoll are whole milliseconds; those of select are not.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    loop.run_until_complete(serve(int(sys.argv[1]), float(sys.argv[2])))


if __name__ == "__main__":
    main()
