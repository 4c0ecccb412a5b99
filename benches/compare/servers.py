"""The servers that are compared: how each is started, stopped, made cold, and what it says of its store.

Every server offers one disk at `uri`. It must not know which jobs run on it.
"""

import contextlib
import os
import pathlib
import re
import shutil
import urllib.request

from processes import Failure, Process, connects, drop_page_cache, free_port, run

KEY = "cairn-compare"
LATENCY_MS = 20
# s3backer stores one object for each block. Its default of 4 KiB would store 262,144 objects for a GiB.
S3BACKER_BLOCK = 128 << 10
REFERENCE = "nbdkit memory"


class Minio:
    """One MinIO for the whole run. Each disk has a bucket of its own, which is removed with it."""

    def __init__(self, tools, work):
        self.work, self.data, self.port = work, work / "minio", free_port()
        self.data.mkdir()
        env = dict(os.environ, MINIO_ROOT_USER=KEY, MINIO_ROOT_PASSWORD=KEY, MINIO_BROWSER="off", MINIO_CI_CD="1")
        argv = [tools / "bin/minio", "server", "--address", f"127.0.0.1:{self.port}", self.data]
        self.process = Process("MinIO", argv, work / "minio.log", "API: ", env)
        self.delay = None

    def delayed_port(self):
        if self.delay is None:
            script = pathlib.Path(__file__).with_name("delay.py")
            argv = ["/usr/bin/python3", script, self.port, LATENCY_MS]
            self.delay = Process("the delay", argv, self.work / "delay.log", "listening on ")
        return int(self.delay.said().split()[-1])

    def remove(self, bucket):
        shutil.rmtree(self.data / bucket, ignore_errors=True)

    def close(self):
        for process in [self.delay, self.process]:
            if process:
                process.kill()


class Server:
    """A disk of `size` bytes behind a Unix socket, made anew for each stage."""

    # Notes for the reader of the table.
    note = ""
    # Whether it has a cache that a restart empties.
    has_cold = True
    programs = []
    needs_root = False
    # Whether it was given on the command line; whether its requests to a store are counted; whether Cairn's own client
    # can measure that store; whether it can serve several disks.
    is_given = has_store = has_raw = has_volumes = False
    processes = ()

    def __init__(self, context, size, stage):
        self.context, self.size, self.stage = context, size, stage
        self.work = context.work / f"{self.key}-{context.next_number()}"
        self.work.mkdir()
        self.socket = self.work / "nbd.sock"
        self.start()

    @property
    def uri(self):
        return f"nbd+unix:///disk?socket={self.socket}"

    def log(self, name):
        return self.work / f"{name}.log"

    def wait_for_socket(self):
        return connects(self.socket)

    def cold(self):
        """Restarts it with empty caches."""
        self.stop()
        self.drop()
        self.start()

    def drop(self):
        drop_page_cache(self.work)

    def begin_durable(self):
        """Called before jobs that depend on what FLUSH promises: from now on, it must keep that promise."""

    def stop(self):
        for process in reversed(self.processes):
            process.stop()
        self.socket.unlink(missing_ok=True)

    def close(self):
        try:
            for process in self.processes:
                process.check()
            self.stop()
        finally:
            self.abandon()

    def abandon(self):
        for process in self.processes:
            process.kill()
        shutil.rmtree(self.work, ignore_errors=True)

    def store_counters(self):
        """Requests by operation, and bytes by operation, since the start; `None` if it has no store."""
        return None

    def raw(self):
        """The environment and URL with which `cairn bench store` measures the same store, if there is one."""
        return None


class NbdkitMemory(Server):
    key, title = "nbdkit-memory", REFERENCE
    note = "stores nothing, so a restart would lose the disk; it is never cold, and FLUSH does nothing"
    has_cold = False
    programs = ["nbdkit"]

    def start(self):
        argv = ["nbdkit", "--foreground", "--exit-with-parent", "--unix", self.socket, "memory", self.size]
        self.processes = [Process(self.title, argv, self.log("nbdkit"), self.wait_for_socket)]


class NbdkitFile(Server):
    key, title = "nbdkit-file", "nbdkit file"
    note = "a sparse file on the local file system; FLUSH is fdatasync"
    programs = ["nbdkit"]

    def start(self):
        file = sparse(self.work / "disk", self.size)
        argv = ["nbdkit", "--foreground", "--exit-with-parent", "--unix", self.socket, "file", file]
        self.processes = [Process(self.title, argv, self.log("nbdkit"), self.wait_for_socket)]


class QemuNbd(Server):
    key, title = "qemu-nbd", "qemu-nbd"
    note = "a sparse raw file on the local file system, cache=writeback; FLUSH is fdatasync"
    programs = ["qemu-nbd"]

    def start(self):
        file = sparse(self.work / "disk", self.size)
        argv = ["qemu-nbd", "--format=raw", "--cache=writeback", "--persistent", "--shared=0",
                "--export-name=disk", f"--socket={self.socket}", file]
        self.processes = [Process(self.title, argv, self.log("qemu-nbd"), self.wait_for_socket)]


class Cairn(Server):
    """The release build with its default settings, but for the size of the cache at the quick size."""

    has_store = has_raw = has_volumes = True
    # Name and size of each of its disks, if it has others than one.
    volumes = None

    def begin_volumes(self, number, size):
        """From now on it serves as many disks of `size` bytes."""
        self.stop()
        self.volumes = {f"disk-{n}": size for n in range(number)}
        self.start()

    def uris(self):
        return [f"nbd+unix:///{name}?socket={self.socket}" for name in self.volumes]

    def environment(self):
        return {name: value for name, value in os.environ.items() if not name.startswith(("CAIRN_", "AWS_"))}

    def start(self):
        self.admin = free_port()
        env = self.environment()
        env.update(CAIRN_ADMIN__SOCKET="none", CAIRN_CACHE__CLEAN=str(self.context.sizes.cache))
        volumes = self.volumes or {"disk": self.size}
        argv = [self.context.cairn, "serve", "--store", self.store_url(),
                *(f"--create={name}={size}" for name, size in volumes.items()),
                "--listen", f"unix:{self.socket}", "--admin", f"127.0.0.1:{self.admin}"]
        self.processes = [Process(self.title, argv, self.log("cairn"), "listening on ", env)]

    def stop(self):
        # Cairn exits with 0 only if everything was committed and closed.
        self.processes[0].stop(statuses=(0,))
        self.socket.unlink(missing_ok=True)

    def store_counters(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        requests, of_bytes = {}, {}
        for name, into in [("requests", requests), ("bytes", of_bytes)]:
            pattern = rf'^cairn_store_{name}_total\{{[^}}]*?operation="(\w+)"[^}}]*\}} (\d+)$'
            for operation, value in re.findall(pattern, text, re.MULTILINE):
                into[operation] = into.get(operation, 0) + int(value)
        if not requests:
            raise Failure("Cairn's metrics have no cairn_store_requests_total")
        return {"requests": requests, "bytes": of_bytes}

    def raw(self):
        return self.environment(), self.store_url()


class CairnDirectory(Cairn):
    key, title = "cairn-directory", "Cairn, directory"
    note = "`file://` on the local file system"

    def store_url(self):
        return f"file://{self.work}/store"


class CairnMinio(Cairn):
    key, title = "cairn-minio", "Cairn, MinIO"
    note = "`s3://` on MinIO on the same machine"
    programs = ["minio"]

    def port(self):
        return self.context.minio().port

    def bucket(self):
        return f"disks-{self.work.name}"

    def store_url(self):
        return f"s3://{self.bucket()}/disk"

    def environment(self):
        return dict(super().environment(), AWS_ENDPOINT_URL=f"http://127.0.0.1:{self.port()}",
                    AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=KEY, AWS_REGION="us-east-1",
                    AWS_EC2_METADATA_DISABLED="true", CAIRN_STORE__PATH_STYLE="true",
                    CAIRN_STORE__CREATE_BUCKET="true")

    def drop(self):
        drop_page_cache(self.context.minio().data / self.bucket())

    def abandon(self):
        super().abandon()
        self.context.minio().remove(self.bucket())


class CairnDelayed(CairnMinio):
    key, title = "cairn-minio-20ms", "Cairn, MinIO + 20 ms"
    note = f"the same, behind {LATENCY_MS} ms of added latency (`delay.py`)"

    def port(self):
        return self.context.minio().delayed_port()


class S3backer(Server):
    """s3backer 1.5 mounts a file and does not speak NBD: nbdkit serves its file."""

    key, title = "s3backer-minio", "s3backer, MinIO"
    note = ("blocks of 128 KiB, a block cache of the size of Cairn's, and the kernel's page cache; without its remedies "
            "for stores that are only eventually consistent; served by nbdkit file. Version 1.5 answers FLUSH before its cache is stored. Only in the rows \"4 KiB write + flush\" and "
            "\"pgbench\" does it run with --blockCacheSync, so that FLUSH means what it says")
    programs = ["s3backer", "nbdkit", "umount", "minio"]
    needs_root = has_store = True
    is_durable = False

    def begin_durable(self):
        self.stop()
        self.is_durable = True
        self.start()

    def start(self):
        minio = self.context.minio()
        bucket = f"disks-{self.work.name}"
        # The bucket is a directory to MinIO on a single drive.
        (minio.data / bucket).mkdir(exist_ok=True)
        access = self.work / "access"
        access.write_text(f"{KEY}:{KEY}\n", encoding="ascii")
        access.chmod(0o600)
        self.mount = self.work / "mount"
        self.mount.mkdir(exist_ok=True)
        argv = ["s3backer", "-f", f"--baseURL=http://127.0.0.1:{minio.port}/", f"--accessFile={access}",
                f"--size={self.size}", f"--blockSize={S3BACKER_BLOCK}", "--noAutoDetect", "--listBlocks",
                f"--blockCacheSize={max(1, self.context.sizes.cache // S3BACKER_BLOCK)}",
                # Remedies for stores that are only eventually consistent: a block could be stored twice a second.
                "--minWriteDelay=0", "--md5CacheSize=0", "--md5CacheTime=0",
                # FUSE would pass on writes of 4 KiB.
                "-o", "big_writes"]
        if self.is_durable:
            argv += ["--blockCacheSync", "--blockCacheWriteDelay=0"]
        file = self.mount / "file"
        s3backer = Process("s3backer", [*argv, bucket, self.mount], self.log("s3backer"), file.exists)
        self.processes = [s3backer]
        argv = ["nbdkit", "--foreground", "--exit-with-parent", "--unix", self.socket, "file", file]
        self.processes.append(Process("nbdkit", argv, self.log("nbdkit"), self.wait_for_socket))

    def stop(self):
        s3backer, nbdkit = self.processes
        nbdkit.stop()
        self.socket.unlink(missing_ok=True)
        # It stores its cache before it ends.
        run(["umount", self.mount], timeout=300)
        s3backer.wait()

    def drop(self):
        drop_page_cache(self.context.minio().data / f"disks-{self.work.name}")

    def abandon(self):
        for process in reversed(self.processes):
            process.kill()
        with contextlib.suppress(Failure):
            # Not mounted any more after a regular end.
            run(["umount", "--lazy", self.mount], cleans_up=True)
        super().abandon()
        self.context.minio().remove(f"disks-{self.work.name}")

    def store_counters(self):
        text = (self.mount / "stats").read_text(encoding="ascii")
        counter = dict(line.split()[:2] for line in text.splitlines() if line.startswith("http_"))
        requests = {name: int(counter[f"http_{name}s"]) for name in ["get", "put", "delete"]}
        of_bytes = {"get": int(counter["http_normal_blocks_read"]), "put": int(counter["http_normal_blocks_written"])}
        return {"requests": requests, "bytes": {name: n * S3BACKER_BLOCK for name, n in of_bytes.items()}}


class Given(Server):
    """An address of the command line. It is not started here, so nothing is known of its process."""

    has_cold, is_given = False, True
    note = "given on the command line: its process and its store are not seen, and it cannot be made cold"

    def start(self):
        pass

    @property
    def uri(self):
        return self.address

    def stop(self):
        pass


def given(title, address):
    key = "given-" + re.sub(r"\W+", "-", title.lower())
    return type("Given", (Given,), {"key": key, "title": title, "address": address})


OURS = [CairnDirectory, CairnMinio, CairnDelayed]
ALL = [NbdkitMemory, *OURS, NbdkitFile, QemuNbd, S3backer]


def sparse(path, size):
    if not path.exists():
        with open(path, "wb") as file:
            file.truncate(size)
    return path


