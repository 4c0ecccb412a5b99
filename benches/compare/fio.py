"""fio's NBD engine: which options a job has, and the figures of its result."""

import json

from processes import Failure, run

KIB, MIB = 1 << 10, 1 << 20
# What a job may take beyond its own time: it ends with a FLUSH of all that it wrote.
GRACE_SECONDS = 180


class Job:
    """Options of fio, and for how long it runs."""

    def __init__(self, rw, block, depth, size, seconds, *, connections=1, is_timed=True, more=()):
        self.reads = rw.endswith("read")
        self.seconds = seconds
        self.options = [f"--rw={rw}", f"--bs={block}", f"--iodepth={depth}", f"--numjobs={connections}",
                        f"--size={size}", f"--runtime={int(seconds * 1000)}ms", *more]
        if is_timed:
            self.options.append("--time_based")

    def command(self, uris):
        common = ["fio", "--output-format=json", "--ioengine=nbd", "--thread", "--group_reporting", *self.options]
        jobs = [["--name=compare", "--new_group", f"--uri={uri}"] for uri in uris]
        # What comes before the first name holds for all.
        return [*common, *(word for job in jobs for word in job)]

    def run(self, uri):
        """Runs the job. Returns its figures."""
        return self.of_each([uri])[0]

    def run_on_each(self, uris):
        """Runs the job on several disks at once. Returns the figures of all together, and the IOPS of each."""
        each = self.of_each(uris)
        total = {name: sum(found[name] for found in each) for name in ["requests", "bytes", "iops"]}
        return {**total, "seconds": max(found["seconds"] for found in each),
                "iops_by_volume": [found["iops"] for found in each]}

    def of_each(self, uris):
        out = run(self.command(uris), timeout=self.seconds + GRACE_SECONDS)
        return figures(out, self.reads, len(uris))


def figures(text, reads, disks=1):
    """The figures of each disk in fio's JSON, which may follow other lines. fio's time of a job includes its FLUSH at the
    end."""
    start = text.find("{\n")
    if start < 0:
        raise Failure(f"fio printed no JSON:\n{text[-2000:]}")
    jobs = json.JSONDecoder().raw_decode(text[start:])[0]["jobs"]
    if len(jobs) != disks or any(job["error"] != 0 for job in jobs):
        raise Failure(f"fio failed:\n{text[-2000:]}")
    return [figures_of(job, reads) for job in jobs]


def figures_of(job, reads):
    side = job["read" if reads else "write"]
    if side["total_ios"] == 0:
        raise Failure("fio finished no command within the time of the job")
    found = {"requests": side["total_ios"], "bytes": side["io_bytes"], "seconds": side["runtime"] / 1000,
             "iops": side["iops"], "latency_ms": percentiles(side["clat_ns"])}
    if job["sync"]["total_ios"]:
        found["flush_ms"] = percentiles(job["sync"]["lat_ns"])
    return found


def percentiles(nanoseconds):
    of = nanoseconds.get("percentile", {})
    return {name: of[key] / 1e6 for name, key in [("p50", "50.000000"), ("p99", "99.000000")] if key in of}


def random_read(size, seconds, connections=1, depth=32):
    return Job("randread", "4k", depth, size, seconds, connections=connections, more=["--norandommap"])


def random_write(size, seconds):
    return Job("randwrite", "4k", 32, size, seconds, more=["--norandommap"])


def every_block(size, seconds):
    """Writes each block once, in random order."""
    return Job("randwrite", "4k", 32, size, seconds, is_timed=False)


def sequential_read(size, seconds, is_timed=True):
    return Job("read", "1m", 8, size, seconds, is_timed=is_timed)


def sequential_write(size, seconds):
    """Writes once from begin to end, with a FLUSH at the end."""
    return Job("write", "1m", 8, size, seconds, is_timed=False, more=["--end_fsync=1"])


def write_and_flush(size, seconds, connections):
    """Each write is followed by a FLUSH on its connection."""
    return Job("randwrite", "4k", 1, size, seconds, connections=connections, more=["--norandommap", "--fsync=1"])
