"""The comparison: servers by turns, the same jobs on each, and a table, JSON and plots of the results."""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import shutil
import shlex
import signal
import subprocess
import sys
import tempfile
import time

import jobs
import plots
import postgres
import servers
from processes import Failure, private_mounts, run, stop_on, stopped_by
from results import Results

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Context:
    """What the servers of a run share: the directory for their files, MinIO, and the database to copy."""

    def __init__(self, args, sizes, work, tools):
        self.cairn, self.sizes, self.work, self.tools = args.cairn, sizes, work, tools
        self.number, self.one_minio, self.template = 0, None, None

    def next_number(self):
        self.number += 1
        return self.number

    def minio(self):
        if self.one_minio is None:
            self.one_minio = servers.Minio(self.tools, self.work)
        return self.one_minio

    def database(self):
        if self.template is None:
            self.template = postgres.make_template(self.work / "template", self.sizes.scale)
        return self.template

    def close(self):
        if self.one_minio:
            self.one_minio.close()


class Measurement:
    """One stage on one server in one round."""

    def __init__(self, context, sizes, server, record):
        self.context, self.sizes, self.server, self.record = context, sizes, server, record

    def prepare(self, job):
        job.run(self.server.uri)

    def cold(self):
        """Empties the caches. Returns whether the jobs on a cold disk make sense for this server."""
        if self.server.is_given:
            return False
        if self.server.has_cold:
            self.server.cold()
        return True

    def measure(self, name, job):
        """Runs a job (or calls a function with the URI), and records its figures and what it cost."""
        server, store = self.server, self.context.one_minio if self.server.has_store else None
        for process in server.processes:
            process.forget_peak()
        before = server.store_counters()
        used = [process.cpu_seconds() for process in server.processes]
        used_by_store = store.process.cpu_seconds() if store else None
        sample = job(server.uri) if callable(job) else job.run(server.uri)
        if server.processes:
            cpu = sum(process.cpu_seconds() for process in server.processes) - sum(used)
            sample["cpu_seconds"] = round(cpu, 3)
            sample["peak_resident_bytes"] = sum(process.peak_bytes() for process in server.processes)
        if used_by_store is not None:
            sample["store_cpu_seconds"] = round(store.process.cpu_seconds() - used_by_store, 3)
        if before:
            sample["store"] = difference(before, server.store_counters())
        self.record(name, sample)


def difference(before, after):
    return {kind: {name: n - before[kind].get(name, 0) for name, n in after[kind].items()} for kind in after}


# --- before it begins ------------------------------------------------------------------------------------------------


def arguments():
    default = os.environ.get("CAIRN_TEST_BINARY") or pathlib.Path(
        os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/cairn"
    parser = argparse.ArgumentParser(
        prog="benches/compare/run.sh", description="Measures Cairn beside other NBD servers, with the same jobs.")
    parser.add_argument("--quick", action="store_true", help="small sizes and one sample: shows that the tool works")
    parser.add_argument("--rounds", type=int, help="samples of each row; the medians are shown (default 3)")
    parser.add_argument("--seconds", type=float, help="time of each timed job (default 10)")
    parser.add_argument("--scale", type=int, help="scale of pgbench (default 10)")
    parser.add_argument("--stages", default=",".join(jobs.STAGES), help="only these stages (default: %(default)s)")
    parser.add_argument("--servers", default=",".join(server.key for server in servers.ALL),
                        help="only these servers (default: %(default)s)")
    parser.add_argument("--nbd", action="append", default=[], metavar="TITLE=URI",
                        help="another NBD server to compare; its export is OVERWRITTEN")
    parser.add_argument("--cairn", type=pathlib.Path, default=pathlib.Path(default),
                        help="the program (default: the release build)")
    parser.add_argument("--output", type=pathlib.Path,
                        help="directory for compare.json and figures/ (default: docs; target/compare with --quick)")
    parser.add_argument("--limit", type=int, metavar="MINUTES", help="give up after this time (default 480; 10 with --quick)")
    args = parser.parse_args()
    quick = args.quick
    args.rounds = args.rounds or (1 if quick else 3)
    args.limit = args.limit or (10 if quick else 480)
    args.output = args.output or ROOT / ("target/compare" if quick else "docs")
    args.stages, args.servers = args.stages.split(","), args.servers.split(",")
    sizes = jobs.QUICK if quick else jobs.FULL
    sizes = sizes._replace(seconds=args.seconds or sizes.seconds, scale=args.scale or sizes.scale)
    # A scale is some 16 MB; the rest is for the log and the file system.
    return args, sizes._replace(pgbench_disk=max(sizes.pgbench_disk, (sizes.scale * 32 + 2048) << 20))\
        if args.scale else sizes


def chosen(args):
    """The servers and stages of the command line."""
    known = {server.key: server for server in servers.ALL}
    for name in args.servers:
        if name not in known:
            raise Failure(f"no server is named {name}: {', '.join(known)}")
    for name in args.stages:
        if name not in jobs.STAGES:
            raise Failure(f"no stage is named {name}: {', '.join(jobs.STAGES)}")
    if servers.NbdkitMemory.key not in args.servers:
        raise Failure("without nbdkit-memory there are no ratios")
    others = []
    for text in args.nbd:
        title, found, address = text.partition("=")
        if not found or not address.startswith(("nbd:", "nbds:", "nbd+", "nbds+")):
            raise Failure(f"--nbd {text}: not TITLE=URI")
        others.append(servers.given(title, address))
    return [*(server for server in servers.ALL if server.key in args.servers), *others]


def check_programs(args, chosen_servers, tools):
    """Fails if a program is missing: all of them are named at once."""
    needed = {"fio": shutil.which("fio")}
    for server in chosen_servers:
        for name in server.programs:
            needed[name] = shutil.which(name) if name != "minio" else shutil.which(tools / "bin/minio")
    if any(issubclass(server, servers.Cairn) for server in chosen_servers) or "raw" in args.stages:
        needed[str(args.cairn)] = shutil.which(args.cairn)
    if "pgbench" in args.stages:
        needed.update({str(name): shutil.which(name) for name in postgres.PROGRAMS})
    missing = sorted(name for name, path in needed.items() if path is None)
    if missing:
        raise Failure(f"missing: {', '.join(missing)}; `tests/tools/install.sh packages s3` and "
                      "`cargo build --release` provide them")
    if "nbd" not in run(["fio", "--enghelp"]).split():
        raise Failure("this fio has no NBD engine")
    needs_root = "pgbench" in args.stages or any(server.needs_root for server in chosen_servers)
    if needs_root and os.geteuid() != 0:
        raise Failure("s3backer and pgbench mount file systems, which needs root; "
                      "leave them out with --servers and --stages")
    return needs_root


def machine():
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        models = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    with open("/proc/meminfo", encoding="utf-8") as info:
        memory_mib = int(info.readline().split()[1]) // 1024
    return {"cpu": models[0] if models else "unknown", "cores": os.cpu_count(), "memory_mib": memory_mib,
            "kernel": os.uname().release}


def commit():
    """The commit of the sources, and whether they were changed since."""
    git = ["git", "-C", str(ROOT), "-c", "safe.directory=*"]
    try:
        head = run([*git, "rev-parse", "HEAD"]).strip()
        return {"commit": head, "changed": bool(run([*git, "status", "--porcelain", "--untracked-files=no"]).strip())}
    except (Failure, FileNotFoundError):
        return {"commit": None, "changed": None}


def versions(args):
    """The first line that each program prints about its version."""
    found = {}
    for argv in [[args.cairn, "--version"], ["fio", "--version"], ["nbdkit", "--version"], ["qemu-nbd", "--version"],
                 ["s3backer", "--version"], [postgres.BIN / "postgres", "--version"]]:
        if shutil.which(argv[0]):
            done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=60, check=False)
            found[pathlib.Path(argv[0]).name] = next(iter((done.stdout or done.stderr).splitlines()), "")
    return found


# --- the run ---------------------------------------------------------------------------------------------------------


def measure_all(args, sizes, context, chosen_servers, results):
    """By rounds, and in each stage by turns, so that what changes on the machine meets all servers alike."""
    for number in range(args.rounds):
        for stage in args.stages:
            for server_of in chosen_servers:
                begun = time.monotonic()
                size = sizes.pgbench_disk if stage == "pgbench" else sizes.disk
                if not jobs.takes_part(stage, server_of):
                    continue
                server = server_of(context, size, stage)
                try:
                    record = lambda name, sample, of=server_of: results.record(of, number, name, sample)
                    jobs.steps(stage)(Measurement(context, sizes, server, record))
                    server.close()
                finally:
                    server.abandon()
                took = time.monotonic() - begun
                print(f"round {number + 1}: {stage}: {server_of.title}: {took:.1f} s", file=sys.stderr, flush=True)


def write(args, sizes, results, sources):
    figures = args.output / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": machine(), **sources, "versions": versions(args),
        "command": shlex.join(["benches/compare/run.sh", *sys.argv[1:]]),
        "ended_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "sizes": sizes._asdict(), "rounds": args.rounds, **results.json(),
    }
    (args.output / "compare.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for name in plots.PLOTS:
        text = plots.plot(name, results)
        if text:
            (figures / f"{name}.svg").write_text(text, encoding="utf-8")


def main():
    args, sizes = arguments()
    tools = pathlib.Path(os.environ["TOOLS"])
    stop_on([signal.SIGINT, signal.SIGTERM, signal.SIGHUP], args.limit * 60)
    chosen_servers = chosen(args)
    if check_programs(args, chosen_servers, tools):
        private_mounts()
    # A row of two stages is computed from both.
    rows = [row for row in jobs.rows(sizes) if all(stage in args.stages for stage in row.stage.split())]
    results, sources = Results(rows, chosen_servers, servers.NbdkitMemory.key), commit()
    work = pathlib.Path(tempfile.mkdtemp(prefix="cairn-compare-"))
    work.chmod(0o755)
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, work, ignore_errors=True)
        context = Context(args, sizes, work, tools)
        undo.callback(context.close)
        measure_all(args, sizes, context, chosen_servers, results)
    results.check(args.rounds)
    write(args, sizes, results, sources)
    print(results.table())


if __name__ == "__main__":
    try:
        main()
    except Exception as failure:  # pylint: disable=broad-exception-caught
        if not isinstance(failure, Failure) and not stopped_by():
            raise
        print(f"compare: {stopped_by() or failure}", file=sys.stderr)
        sys.exit(1)
