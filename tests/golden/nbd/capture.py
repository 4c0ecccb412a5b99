#!/usr/bin/env python3
"""Captures what other NBD clients and servers say to each other, for tests/protocol/golden.rs.

Every conversation runs through a proxy that keeps what each side sent: NAME-K.client and NAME-K.server for the K-th
connection of a scenario. Needs nbdkit, libnbd-bin, nbd-client and qemu-utils; set QEMU10 to a directory with
qemu-nbd and qemu-io of QEMU 10 for the conversation with extended headers.

    tests/golden/nbd/capture.py
"""

import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
QEMU10 = os.environ.get("QEMU10")

IO = ["-c", "write -P 0x61 4k 1k", "-c", "read 0 8k", "-c", "write -z 4k 512", "-c", "discard 0 8k", "-c", "flush"]


def relay(source, sink, path):
    """Passes bytes on until the source ends, and keeps them."""
    with open(path, "wb") as kept:
        while data := source.recv(1 << 16):
            kept.write(data)
            try:
                sink.sendall(data)
            except OSError:
                break
    try:
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


class Proxy:
    """Listens on TCP, passes every connection on to a Unix socket."""

    def __init__(self, name, target):
        self.name, self.target, self.threads, self.count = name, target, [], 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.count += 1
            server = socket.socket(socket.AF_UNIX)
            server.connect(self.target)
            for ours, theirs, side in (client, server, "client"), (server, client, "server"):
                path = HERE / f"{self.name}-{self.count}.{side}"
                thread = threading.Thread(target=relay, args=(ours, theirs, path))
                thread.start()
                self.threads.append(thread)


def converse(name, serve, client):
    """Runs a server and a client with a proxy between them."""
    directory = tempfile.mkdtemp()
    path = os.path.join(directory, "socket")
    image = os.path.join(directory, "image")
    with open(image, "wb") as file:
        file.truncate(1 << 20)
    server = subprocess.Popen([part.format(socket=path, image=image) for part in serve])
    while not os.path.exists(path):
        if server.poll() is not None:
            raise SystemExit(f"{name}: the server did not start")
        time.sleep(0.01)
    proxy = Proxy(name, path)
    uri = f"nbd://127.0.0.1:{proxy.port}"
    result = subprocess.run(
        [part.format(uri=uri, port=proxy.port) for part in client], capture_output=True, text=True, check=False
    )
    proxy.listener.close()
    server.terminate()
    server.wait()
    for thread in proxy.threads:
        thread.join()
    shutil.rmtree(directory)
    print(f"{name}: {proxy.count} connections, exit {result.returncode}")
    print(result.stdout + result.stderr)


def main():
    for old in [*HERE.glob("*.client"), *HERE.glob("*.server")]:
        old.unlink()
    nbdkit = ["nbdkit", "--foreground", "--exit-with-parent", "-U", "{socket}"]
    data = ["data", "@4096 0x61*1024", "size=64K"]
    qemu_nbd = ["qemu-nbd", "--persistent", "--shared=2", "-f", "raw", "-k", "{socket}", "-x", "disk"]
    qemu_nbd += ["-D", "a test disk", "{image}"]
    qemu_io = ["qemu-io", "-f", "raw", *IO]
    converse("libnbd-map-nbdkit", [*nbdkit, *data], ["nbdinfo", "--map", "{uri}"])
    converse("libnbd-copy-nbdkit", [*nbdkit, *data], ["nbdcopy", "--connections=1", "{uri}", "null:"])
    converse("libnbd-list-qemu", qemu_nbd, ["nbdinfo", "--list", "{uri}"])
    converse("libnbd-unfixed-nbdkit", [*nbdkit, "--mask-handshake=0", *data], ["nbdinfo", "--size", "{uri}"])
    converse("libnbd-oldstyle-nbdkit", [*nbdkit, "--oldstyle", *data], ["nbdcopy", "{uri}", "null:"])
    converse("nbdclient-list-qemu", qemu_nbd, ["nbd-client", "-l", "127.0.0.1", "{port}"])
    converse("qemu-io-nbdkit-simple", [*nbdkit, "--no-sr", "memory", "1M"], [*qemu_io, "{uri}"])
    failing = [*nbdkit, "--filter=error", "memory", "1M", "error=ENOSPC", "error-rate=100%"]
    converse("qemu-io-nbdkit-errors", failing, [*qemu_io, "{uri}"])
    converse("qemu-io-qemu", qemu_nbd, [*qemu_io, "{uri}/disk"])
    if QEMU10:
        server = [os.path.join(QEMU10, "qemu-nbd"), *qemu_nbd[1:]]
        client = [os.path.join(QEMU10, "qemu-io"), *qemu_io[1:], "-c", "map", "{uri}/disk"]
        converse("qemu10-io-qemu10-extended", server, client)


main()
