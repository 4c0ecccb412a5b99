"""pgbench on a file system on an NBD disk: ext4 on a loop device on the file of nbdfuse. Needs root."""

import concurrent.futures
import contextlib
import pathlib
import re
import signal

from processes import Failure, Process, run

BIN = pathlib.Path("/usr/lib/postgresql/15/bin")
USER = "postgres"
PROGRAMS = ["nbdfuse", "mkfs.ext4", "mount", "umount", "losetup", "cp", BIN / "initdb", BIN / "postgres", BIN / "pgbench"]
CLIENTS = 16
# Bytes that one thread reads at a time to warm the page cache.
PART = 4 << 20
# Everything else is PostgreSQL's default: each commit is flushed.
SETTINGS = ["max_wal_size=512MB", "listen_addresses=", "autovacuum=off"]


def serve(data, at, log):
    argv = [BIN / "postgres", "-D", data, "-k", at, *(word for setting in SETTINGS for word in ["-c", setting])]
    return Process("PostgreSQL", argv, log, "ready to accept connections", user=USER)


def stop(server):
    # A fast shutdown (server-shutdown, "SIGINT").
    server.stop(signal.SIGINT, statuses=(0,))


def make_template(at, scale):
    """A database of pgbench, made once and copied to each disk."""
    at.mkdir()
    at.chmod(0o777)
    data = at / "data"
    run([BIN / "initdb", "--no-sync", "--auth=trust", "-D", data], user=USER, cwd=at)
    server = serve(data, at, at / "postgres.log")
    try:
        run([BIN / "pgbench", "-h", at, "-i", "-q", "-s", scale, "postgres"], timeout=600, user=USER, cwd=at)
        stop(server)
    finally:
        server.kill()
    return data


def prepare(uri, template, work):
    """Makes a file system on the disk at `uri`, and copies the database to it."""
    work.mkdir()
    work.chmod(0o755)
    with file_system(uri, work, is_new=True) as mounted:
        run(["cp", "-a", template, mounted], timeout=600)


@contextlib.contextmanager
def file_system(uri, work, is_new=False):
    """The ext4 on the disk at `uri`, mounted. Afterwards it is unmounted, with all that was written to it."""
    fuse, mounted = work / "fuse", work / "mounted"
    fuse.mkdir(exist_ok=True)
    mounted.mkdir(exist_ok=True)
    disk = fuse / "disk"
    with contextlib.ExitStack() as undo:
        nbdfuse = Process("nbdfuse", ["nbdfuse", disk, uri], work / "nbdfuse.log", disk.exists)
        undo.callback(nbdfuse.kill)
        undo.callback(unmount, fuse)
        if is_new:
            # The whole file system is there before the measurement begins.
            options = "nodiscard,lazy_itable_init=0,lazy_journal_init=0"
            run(["mkfs.ext4", "-q", "-F", "-E", options, disk], timeout=600)
        # With direct I/O a loop device has as many requests under way as the file system sends, like a disk. Without,
        # it reads one block after the other, and the host caches all of the disk once more.
        loop = run(["losetup", "--find", "--show", "--direct-io=on", disk]).strip()
        undo.callback(detach, loop)
        run(["mount", "-t", "ext4", loop, mounted])
        undo.callback(unmount, mounted)
        yield mounted
        run(["umount", mounted], timeout=600)
        run(["losetup", "--detach", loop], timeout=600)
        run(["umount", fuse], timeout=60)
        nbdfuse.wait()
        undo.pop_all()


def detach(loop):
    with contextlib.suppress(Failure):
        run(["losetup", "--detach", loop], cleans_up=True)


def unmount(at):
    with contextlib.suppress(Failure):
        run(["umount", "--lazy", at], cleans_up=True)


@contextlib.contextmanager
def mounted_database(uri, database, work, is_warm):
    """The database on the disk at `uri`, mounted. If `is_warm`, all of it was read once."""
    with file_system(uri, work) as mounted:
        if is_warm:
            read_all(mounted / database)
        yield mounted / database


def read_all(directory):
    """Brings every file below a directory into the page cache. Many reads are under way at once."""
    parts = [(path, at) for path in directory.rglob("*") if path.is_file() for at in range(0, path.stat().st_size, PART)]
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as threads:
        for _ in threads.map(lambda part: read_part(*part), parts):
            pass


def read_part(path, at):
    with open(path, "rb", buffering=0) as file:
        file.seek(at)
        left = PART
        while left > 0 and (read := len(file.read(min(left, 1 << 20)))) > 0:
            left -= read


def transactions_per_second(data, work, seconds, options):
    """The rate of TPC-B (sort of), unless the options of pgbench say otherwise, without the time for connecting."""
    sockets = work / "sockets"
    sockets.mkdir(exist_ok=True)
    sockets.chmod(0o777)
    server = serve(data, sockets, work / "postgres.log")
    try:
        argv = [BIN / "pgbench", "-h", sockets, "-n", "-c", CLIENTS, "-j", 2, "-T", seconds, *options, "postgres"]
        out = run(argv, timeout=seconds + 300, user=USER, cwd=sockets)
        stop(server)
    finally:
        server.kill()
    found = re.search(r"^tps = ([\d.]+) ", out, re.MULTILINE)
    done = re.search(r"actually processed: (\d+)", out)
    failed = re.search(r"number of failed transactions: (\d+)", out)
    if not found or not done or (failed and failed[1] != "0"):
        raise Failure(f"pgbench printed no rate, or transactions failed:\n{out}")
    return {"tps": float(found[1]), "requests": int(done[1]), "seconds": seconds}
