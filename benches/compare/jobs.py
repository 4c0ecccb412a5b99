"""The rows of the table: which jobs run, on which state of the disk, and what is computed from their figures.

A stage begins with a fresh disk. Its steps run in order, so that each row's state is the one that it names.
"""

import collections
import json

import fio
import postgres
from processes import run

GIB, MIB = 1 << 30, 1 << 20
# The bound on a job that ends when it has transferred everything, as a multiple of the time of timed jobs.
UNTIMED = 12
# Depth of each connection where there are many.
CROWD_DEPTH = 8

Sizes = collections.namedtuple("Sizes", "disk small hot cache large seconds pgbench_disk scale raw crowd")
FULL = Sizes(disk=GIB, small=128 * MIB, hot=256 * MIB, cache=256 * MIB, large=GIB, seconds=10,
             pgbench_disk=4 * GIB, scale=10, raw=GIB, crowd=64)
QUICK = Sizes(disk=64 * MIB, small=4 * MIB, hot=16 * MIB, cache=16 * MIB, large=64 * MIB, seconds=0.2,
              pgbench_disk=256 * MIB, scale=1, raw=32 * MIB, crowd=4)

# A row: `value` takes the samples of one server and round by row, and returns the value or `None`. A ratio to the
# reference makes sense for some. `needs`: what a server must have, see `why_not`.
Row = collections.namedtuple("Row", "id stage work state unit value has_ratio needs", defaults=(True, None))

IOPS, RATE, TIME, CPU, COUNT, TIMES, MEMORY = "IOPS", "MiB/s", "ms", "CPU s/GiB", "requests", "×", "MiB"


def figure(name, scale=1):
    return lambda row_id, samples: samples[row_id][name] * scale


def iops(row_id, samples):
    return samples[row_id]["iops"]


def rate(row_id, samples):
    sample = samples[row_id]
    return sample["bytes"] / sample["seconds"] / MIB


def cpu_per_gib(of):
    return lambda _, samples: samples[of]["cpu_seconds"] * GIB / samples[of]["bytes"]


def store_requests_per_gib(of):
    return lambda _, samples: sum(samples[of]["store"]["requests"].values()) * GIB / samples[of]["bytes"]


def crowd_of_one(_, samples):
    return samples["crowd"]["iops"] / samples["crowd-one"]["iops"]


def slowest_of_mean(_, samples):
    by_volume = samples["crowd"]["iops_by_volume"]
    return min(by_volume) * len(by_volume) / sum(by_volume)


def put_per_byte(of):
    return lambda _, samples: samples[of]["store"]["bytes"].get("put", 0) / samples[of]["bytes"]


def peak(_, samples):
    return max(s["peak_resident_bytes"] for s in samples.values() if "peak_resident_bytes" in s) / MIB


def of_raw(of, raw):
    return lambda _, samples: rate(of, samples) / samples["raw"][raw]["bytes_per_second"] * MIB


def durable_ms(_, samples):
    # s3backer with --blockCacheSync stores in the WRITE, all others in the FLUSH.
    sample = samples["flush-1"]
    return sample["latency_ms"]["p50"] + sample["flush_ms"]["p50"]


def durable_of_put(row_id, samples):
    return durable_ms(row_id, samples) / 1000 / samples["raw"]["put_small"]["latency_seconds"]["p50"]


def pgbench_of_put(_, samples):
    return samples["pgbench-warm"]["tps"] * samples["raw"]["put_small"]["latency_seconds"]["p50"] / postgres.CLIENTS


def cold_of_raw_range(_, samples):
    return samples["cold-random"]["iops"] / samples["raw"]["get_range"]["requests_per_second"]


def raw_rate(name):
    return lambda _, samples: samples["raw"][name]["bytes_per_second"] / MIB


def raw_time(name):
    return lambda _, samples: samples["raw"][name]["latency_seconds"]["p50"] * 1000


def size(n):
    return f"{n >> 30} GiB" if n % GIB == 0 else f"{n >> 20} MiB"


def rows(sizes):
    """Every row, in the order of the table."""
    small, hot, large = size(sizes.small), size(sizes.hot), size(sizes.large)
    sequential, random = "after sequential writing", "after random writes"
    read, write, stream = "4 KiB random read, depth 32", "4 KiB random write, depth 32", "1 MiB sequential read"
    four = f"{read}, 4 connections"
    beyond = "beyond the cache, "
    pgbench = f"pgbench TPC-B, {postgres.CLIENTS} clients, scale {sizes.scale}, ext4 over nbdfuse and a loop device"
    in_memory = "the database in the page cache of the client"
    return [
        Row("read-sequential", "small", f"{read}, {small}", sequential, IOPS, iops),
        Row("read-sequential-4", "small", f"{four}, {small}", sequential, IOPS, iops),
        Row("read-random", "small", f"{read}, {small}", random, IOPS, iops),
        Row("read-random-4", "small", f"{four}, {small}", random, IOPS, iops),
        Row("read-hot", "hot", f"{read}, {hot}", f"as large as the cache, {random}", IOPS, iops),
        Row("write-small", "small", f"{write}, {small}", "overwriting", IOPS, iops),
        Row("write-large", "large", f"{write}, {large}", beyond + "overwriting", IOPS, iops),
        Row("beyond-sequential", "large", f"{read}, {large}", beyond + sequential, IOPS, iops),
        Row("beyond-random", "large", f"{read}, {large}", beyond + random, IOPS, iops),
        Row("stream-sequential", "small", f"{stream}, {small}", f"warm, {sequential}", RATE, rate),
        Row("stream-random", "small", f"{stream}, {small}", f"warm, {random}", RATE, rate),
        Row("fill", "large", f"1 MiB sequential write and flush, {large}", "fresh", RATE, rate),
        Row("cold-stream", "large", f"{stream}, {large}", f"cold, {sequential}", RATE, rate, needs="cold"),
        Row("cold-stream-random", "large", f"{stream}, {large}", f"cold, {random}", RATE, rate, needs="cold"),
        Row("cold-random", "large", f"{read}, {large}", f"cold, {sequential}", IOPS, iops, needs="cold"),
        Row("flush-1", "flush", "4 KiB write + flush, 1 writer", "fresh", IOPS, iops),
        Row("flush-1-time", "flush", "4 KiB write + flush, 1 writer: the sum of both medians", "fresh", TIME, durable_ms,
            False),
        Row("flush-32", "flush", "4 KiB write + flush, 32 writers", "fresh", IOPS, iops),
        Row("crowd-one", "crowd", f"4 KiB random read, depth {CROWD_DEPTH}, 4 connections, {small}, 1 volume", sequential,
            IOPS, iops, False, "volumes"),
        Row("crowd", "crowd", f"the same by {4 * sizes.crowd} connections to {sizes.crowd} volumes at once, all together",
            sequential, IOPS, iops, False, "volumes"),
        Row("crowd-of-one", "crowd", f"the same, of what 1 volume has", sequential, TIMES, crowd_of_one, False, "volumes"),
        Row("crowd-slowest", "crowd", f"the slowest of the {sizes.crowd} volumes, of their mean", sequential, TIMES,
            slowest_of_mean, False, "volumes"),
        Row("pgbench", "pgbench", pgbench, "just mounted", "tps", figure("tps")),
        Row("pgbench-warm", "pgbench", pgbench, in_memory, "tps", figure("tps")),
        Row("pgbench-read", "pgbench", f"pgbench, only reading, {postgres.CLIENTS} clients, scale {sizes.scale}",
            in_memory, "tps", figure("tps")),
        Row("pgbench-of-raw", "pgbench raw", f"pgbench TPC-B, of {postgres.CLIENTS} transactions in the time of a raw PUT of "
            "4 KiB", in_memory, TIMES, pgbench_of_put, False, "raw"),
        Row("cpu-cold", "large", f"CPU of the server: {stream}", "cold", CPU, cpu_per_gib("cold-stream"),
            needs="cold process"),
        Row("cpu-written", "large", "CPU of the server: 1 MiB sequential write and flush", "fresh", CPU,
            cpu_per_gib("fill"), needs="process"),
        Row("cpu-warm", "small", f"CPU of the server: {stream}", f"warm, {sequential}", CPU,
            cpu_per_gib("stream-sequential"), needs="process"),
        Row("memory", "large", "peak resident memory of the server", "in all jobs", MEMORY, peak, False, "process"),
        Row("requests-written", "large", "store requests per GiB: 1 MiB sequential write and flush", "fresh", COUNT,
            store_requests_per_gib("fill"), False, "store"),
        Row("requests-cold", "large", f"store requests per GiB: {stream}", "cold", COUNT,
            store_requests_per_gib("cold-stream"), False, "store"),
        Row("put-random", "large", f"bytes put per byte: {write}, {large}", "during the job", TIMES,
            put_per_byte("write-large"), False, "store"),
        Row("raw-put", "raw", "raw PUT of 4 MiB, 32 at a time", "cairn bench store", RATE, raw_rate("put"), False, "raw"),
        Row("raw-get", "raw", "raw GET of 4 MiB, 32 at a time", "cairn bench store", RATE, raw_rate("get"), False, "raw"),
        Row("raw-put-time", "raw", "raw PUT of 4 KiB, 1 at a time: median", "cairn bench store", TIME,
            raw_time("put_small"), False, "raw"),
        Row("raw-get-small", "raw", "raw GET of 4 KiB, 32 at a time", "cairn bench store", IOPS,
            lambda _, samples: samples["raw"]["get_range"]["requests_per_second"], False, "raw"),
        Row("fill-of-raw", "large raw", "sequential write and flush, of raw PUT", "fresh", TIMES,
            of_raw("fill", "put"), False, "raw"),
        Row("cold-of-raw", "large raw", "sequential read, of raw GET", "cold", TIMES,
            of_raw("cold-stream", "get"), False, "raw"),
        Row("cold-random-of-raw", "large raw", "random read, depth 32, of raw GET of 4 KiB", "cold", TIMES,
            cold_of_raw_range, False, "raw"),
        Row("flush-of-raw", "flush raw", "4 KiB write + flush, 1 writer: the sum of both medians, of raw PUT of 4 KiB",
            "fresh", TIMES, durable_of_put, False, "raw"),
    ]


STAGES = ["raw", "small", "hot", "large", "flush", "crowd", "pgbench"]


def takes_part(stage, server):
    """Whether a server has anything to do in a stage. Otherwise it is not even started: some do not end if they are asked
    to at once."""
    return {"raw": server.has_raw, "crowd": server.has_volumes}.get(stage, True)


def why_not(row, server):
    """Why a server has no value in a row by its nature, or `None` if it must have one."""
    for need in (row.needs or "").split():
        if need == "cold" and server.is_given:
            return "not restarted"
        if need == "process" and server.is_given:
            return "not seen"
        if need == "store" and not server.has_store:
            return "no store seen"
        if need == "raw" and not server.has_raw:
            return "no store of Cairn"
        if need == "volumes" and not server.has_volumes:
            return "one disk"
    return None


# --- the stages ------------------------------------------------------------------------------------------------------


def stage_raw(m):
    """The store itself, through Cairn's own client."""
    raw = m.server.raw()
    if raw is None:
        return
    env, url = raw

    def bench(object_size, concurrency, transferred):
        argv = [m.context.cairn, "bench", "store", url, "--json", "--size", object_size, "--concurrency", concurrency,
                "--seconds", max(1, int(m.sizes.seconds)), "--bytes", transferred]
        return json.loads(run(argv, timeout=4 * m.sizes.seconds + 120, env=env))

    large, single = bench("4MiB", 32, m.sizes.raw), bench("4KiB", 1, m.sizes.raw // 64)
    m.record("raw", {"put": large["put"], "get": large["get"], "get_range": large["get_range"],
                     "put_small": single["put"]})


def stage_small(m):
    """What the cache holds."""
    size, seconds = m.sizes.small, m.sizes.seconds
    m.prepare(fio.sequential_write(size, UNTIMED * seconds))
    m.measure("read-sequential", fio.random_read(size, seconds))
    m.measure("read-sequential-4", fio.random_read(size, seconds, connections=4))
    m.measure("stream-sequential", fio.sequential_read(size, seconds))
    m.measure("write-small", fio.random_write(size, seconds))
    m.measure("read-random", fio.random_read(size, seconds))
    m.measure("read-random-4", fio.random_read(size, seconds, connections=4))
    m.measure("stream-random", fio.sequential_read(size, seconds))


def stage_hot(m):
    """A hot set of the size of the cache."""
    size, seconds = m.sizes.hot, m.sizes.seconds
    m.prepare(fio.sequential_write(size, UNTIMED * seconds))
    m.prepare(fio.every_block(size, UNTIMED * seconds))
    m.measure("read-hot", fio.random_read(size, seconds))


def stage_large(m):
    """Four times what the cache holds; cold caches."""
    size, seconds = m.sizes.large, m.sizes.seconds
    m.measure("fill", fio.sequential_write(size, UNTIMED * seconds))
    if m.cold():
        m.measure("cold-stream", fio.sequential_read(size, UNTIMED * seconds, is_timed=False))
        m.cold()
        m.measure("cold-random", fio.random_read(size, seconds))
    m.measure("beyond-sequential", fio.random_read(size, seconds))
    m.measure("write-large", fio.random_write(size, seconds))
    m.measure("beyond-random", fio.random_read(size, seconds))
    if m.cold():
        m.measure("cold-stream-random", fio.sequential_read(size, UNTIMED * seconds, is_timed=False))


def stage_flush(m):
    """Durable small writes."""
    size, seconds = m.sizes.small, m.sizes.seconds
    m.server.begin_durable()
    m.measure("flush-1", fio.write_and_flush(size, seconds, 1))
    m.measure("flush-32", fio.write_and_flush(size, seconds, 32))


def stage_crowd(m):
    """Many volumes of one gateway at once. Together they are as large as the disk that one of them has to itself."""
    size, seconds, each = m.sizes.small, m.sizes.seconds, m.sizes.small // m.sizes.crowd
    m.prepare(fio.sequential_write(size, UNTIMED * seconds))
    m.measure("crowd-one", fio.random_read(size, seconds, connections=4, depth=CROWD_DEPTH))
    m.server.begin_volumes(m.sizes.crowd, each)
    for uri in m.server.uris():
        fio.sequential_write(each, UNTIMED * seconds).run(uri)
    crowd = fio.random_read(each, seconds, connections=4, depth=CROWD_DEPTH)
    m.measure("crowd", lambda _: crowd.run_on_each(m.server.uris()))


def stage_pgbench(m):
    """A database."""
    seconds, work = max(1, int(m.sizes.seconds * 3)), m.context.work / f"pgbench-{m.context.next_number()}"
    template = m.context.database()
    postgres.prepare(m.server.uri, template, work)
    m.server.begin_durable()
    for name, is_warm, more in [("pgbench", False, []), ("pgbench-warm", True, []),
                                ("pgbench-read", True, ["--select-only"])]:
        with postgres.mounted_database(m.server.uri, template.name, work, is_warm) as data:
            m.measure(name, lambda _, at=data, of=more: postgres.transactions_per_second(at, work, seconds, of))


def steps(stage):
    return globals()[f"stage_{stage}"]
