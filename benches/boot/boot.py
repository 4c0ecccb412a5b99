"""Boots Debian in QEMU from a cold disk of Cairn, and writes how long that takes and what it fetches."""

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import statistics
import sys
import tempfile
import time
import types
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMPARE = ROOT / "benches/compare"
sys.path.insert(0, str(COMPARE))

# The modules of the comparison: its servers, its programs, and what it says of the machine.
import processes  # noqa: E402
import servers  # noqa: E402
from processes import Failure, Process, free_port, run, stop_on, stopped_by  # noqa: E402

SPEC = importlib.util.spec_from_file_location("compare", COMPARE / "__main__.py")
compare = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(compare)

# In software emulation, a boot takes minutes.
processes.READY_SECONDS = 1800
CACHE_BYTES = 256 << 20
RECORDED_FOR = "10m"
NEVER = "0s"


class Disk(servers.CairnDelayed):
    """A disk with the image, which is imported without the latency."""

    key, title = "boot", "Cairn, MinIO + 20 ms"
    image, record_reads, is_imported = None, NEVER, False

    def start(self):
        self.admin, self.admin_socket = free_port(), self.work / "admin.sock"
        env = self.environment()
        env.update(CAIRN_ADMIN__SOCKET=str(self.admin_socket), CAIRN_CACHE__CLEAN=str(CACHE_BYTES),
                   CAIRN_VOLUMES__OPEN="disk", CAIRN_VOLUMES__RECORD_READS=self.record_reads)
        if not self.is_imported:
            # The bucket is a directory to MinIO on a single drive.
            (self.context.minio().data / self.bucket()).mkdir(exist_ok=True)
            near = dict(env, AWS_ENDPOINT_URL=f"http://127.0.0.1:{self.context.minio().port}")
            argv = [self.context.cairn, "import", self.image, "disk", "--quiet", "--store", self.store_url()]
            run(argv, timeout=1800, env=near)
            self.is_imported = True
        argv = [self.context.cairn, "serve", "--store", self.store_url(), "--listen", f"unix:{self.socket}",
                "--admin", f"127.0.0.1:{self.admin}"]
        self.processes = [Process(self.title, argv, self.log("cairn"), "listening on ", env)]

    def warm(self):
        """What `cairn volume warm` says."""
        argv = [self.context.cairn, "volume", "warm", "disk", f"--gateway={self.admin_socket}", "--json"]
        return json.loads(run(argv, timeout=1800, env=self.environment()))

    def warmed(self):
        """Bytes that were loaded before anybody read them, and the GETs for them."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        value = lambda name: int(re.search(rf"^cairn_{name}_total\{{[^}}]*\}} (\d+)$", text, re.MULTILINE)[1])
        return {"bytes": value("warmed_bytes"), "requests": value("warm_requests")}


def qemu(files, disk, accelerator):
    drive = f"file={disk.uri},format=raw,if=virtio,snapshot=on"
    return ["qemu-system-x86_64", "-accel", accelerator, "-cpu", "max", "-smp", "2", "-m", "1024",
            "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio",
            "-kernel", files / "vmlinuz", "-initrd", files / "initrd",
            "-append", "console=ttyS0 quiet panic=-1 no_timer_check rdinit=/first", "-drive", drive]


def accelerator(args):
    return "kvm" if args.kvm else "tcg,thread=multi"


def boot(args, disk, record_reads, is_warmed=False):
    """Boots once from a gateway that has just started. What the machine writes does not reach the disk."""
    disk.record_reads = record_reads
    disk.cold()
    sample = {}
    if is_warmed:
        begun = time.monotonic()
        disk.warm()
        sample["warm_seconds"] = round(time.monotonic() - begun, 3)
    begun = time.monotonic()
    machine = Process("the machine", qemu(args.files, disk, accelerator(args)), disk.log("machine"), "vm: booted")
    sample["boot_seconds"] = round(time.monotonic() - begun, 3)
    machine.kill()
    counted = disk.store_counters()
    sample["gets"], sample["get_bytes"] = counted["requests"]["get"], counted["bytes"]["get"]
    sample["warmed"] = disk.warmed()
    return sample


def measure(args, disk):
    """By turns, so that what changes on the machine meets all kinds alike."""
    samples = {"without": [], "with": [], "warmed": []}
    # This boot is recorded. The gateway stores the record when it ends.
    boot(args, disk, RECORDED_FOR)
    for number in range(args.rounds):
        for kind, of in [("without", (NEVER,)), ("with", (RECORDED_FOR,)), ("warmed", (NEVER, True))]:
            sample = boot(args, disk, *of)
            samples[kind].append(sample)
            print(f"round {number + 1}: {kind}: {json.dumps(sample)}", file=sys.stderr, flush=True)
    return samples


def medians(samples):
    names = ["boot_seconds", "warm_seconds", "gets", "get_bytes"]
    of = lambda kind, name: [sample[name] for sample in samples[kind] if name in sample]
    return {kind: {name: statistics.median(of(kind, name)) for name in names if of(kind, name)} for kind in samples}


def arguments():
    default = os.environ.get("CAIRN_TEST_BINARY") or pathlib.Path(
        os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/cairn"
    parser = argparse.ArgumentParser(
        prog="benches/boot/run.sh", description="Measures how long Debian boots from a cold disk of Cairn.")
    parser.add_argument("--files", type=pathlib.Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3, help="boots of each kind; the medians are shown (default 3)")
    parser.add_argument("--cairn", type=pathlib.Path, default=pathlib.Path(default),
                        help="the program (default: the release build)")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "docs/boot.json", help="where the results go")
    parser.add_argument("--kvm", action="store_true", help="use KVM (default: software emulation, as the tests do)")
    parser.add_argument("--limit", type=int, metavar="MINUTES", default=240, help="give up after this time (default 240)")
    return parser.parse_args()


def main():
    args, tools = arguments(), pathlib.Path(os.environ["TOOLS"])
    stop_on([signal.SIGINT, signal.SIGTERM, signal.SIGHUP], args.limit * 60)
    missing = [str(name) for name in ["qemu-system-x86_64", tools / "bin/minio", args.cairn] if not shutil.which(name)]
    if missing:
        raise Failure(f"missing: {', '.join(missing)}; `tests/tools/install.sh packages s3` and "
                      "`cargo build --release` provide them")
    work = pathlib.Path(tempfile.mkdtemp(prefix="cairn-boot-"))
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, work, ignore_errors=True)
        context = compare.Context(args, types.SimpleNamespace(cache=CACHE_BYTES), work, tools)
        undo.callback(context.close)
        Disk.image = args.files / "disk.img"
        disk = Disk(context, Disk.image.stat().st_size, "boot")
        undo.callback(disk.abandon)
        samples = measure(args, disk)
        document = {
            "machine": compare.machine(), "accelerator": accelerator(args), **compare.commit(),
            "command": shlex.join(["benches/boot/run.sh", *sys.argv[3:]]),
            "qemu": run(["qemu-system-x86_64", "--version"]).splitlines()[0],
            "ended_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "latency_ms": servers.LATENCY_MS, "image_bytes": disk.size, "rounds": args.rounds,
            "medians": medians(samples), "samples": samples,
        }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document["medians"], indent=1))


if __name__ == "__main__":
    try:
        main()
    except Exception as failure:  # pylint: disable=broad-exception-caught
        if not isinstance(failure, Failure) and not stopped_by():
            raise
        print(f"boot: {stopped_by() or failure}", file=sys.stderr)
        sys.exit(1)
