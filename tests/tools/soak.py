#!/usr/bin/env python3
"""Watches, verifies and judges what tests/tools/soak.sh runs.

usage: soak.py sample PID METRICS-URL STORE FILE     adds a line of JSON to FILE every 10 s, until it is killed
       soak.py verify BYTES <DISK                    checks each block of a disk that fio wrote with --verify=sha1
       soak.py report SOURCE SAMPLES FIO LOGS OUT    writes OUT/soak.json and OUT/soak.svg; exits with 3 if something rises
       soak.py draw JSON SVG                         draws the plot of a report again

Needs nothing but Python.
"""
import hashlib
import json
import math
import os
import struct
import sys
import time
import urllib.request
from pathlib import Path

INTERVAL_S = 10
BLOCK = 4096
# fio's header of a block: magic, type, length, seed, offset, two times, thread, number, checksum of the header. The
# checksum of the data follows, and then the data.
HEADER = struct.Struct("<HHIQQIIHHI")
MAGIC = 0xACCA
SHA1 = struct.Struct("<5I")
# What may differ between the middle of the run and its end: the first quarter warms up, and does not count.
LEVELS = {"stored_bytes": ("max", 1.05), "resident_bytes": ("max", 1.05), "write_mean_ms": ("mean", 1.25), "flush_mean_ms": ("mean", 1.25)}


def size_of_files(directory):
    total = 0
    for root, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except FileNotFoundError:
                pass  # deleted meanwhile
    return total


def resident(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:"))


def metrics(url):
    """The sum of each metric over its labels, and the cumulative buckets of FLUSH."""
    sums, flushes = {}, {}
    with urllib.request.urlopen(url, timeout=30) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("#") or not line:
                continue
            name, value = line.rsplit(" ", 1)
            labels = name[name.find("{"):] if "{" in name else ""
            name = name.split("{")[0]
            sums[name] = sums.get(name, 0.0) + float(value)
            if name == "cairn_flush_duration_seconds_bucket":
                bound = labels.split('le="')[1].split('"')[0]
                flushes[bound] = flushes.get(bound, 0.0) + float(value)
    return sums, flushes


KEPT = ("cairn_write_duration_seconds_sum", "cairn_write_duration_seconds_count", "cairn_flush_duration_seconds_sum",
        "cairn_flush_duration_seconds_count", "cairn_read_duration_seconds_sum", "cairn_read_duration_seconds_count",
        "cairn_journal_bytes", "cairn_put_bytes_total", "cairn_write_throttled_seconds_total", "cairn_dirty_bytes")


def sample(pid, url, store, path):
    begun = time.monotonic()
    due = begun
    with open(path, "a", encoding="ascii") as out:
        while True:
            sums, flushes = metrics(url)
            line = {"second": round(time.monotonic() - begun, 1), "stored_bytes": size_of_files(store), "resident_bytes": resident(pid),
                    "flushes": flushes, **{name: sums.get(name, 0.0) for name in KEPT}}
            out.write(json.dumps(line) + "\n")
            out.flush()
            due += INTERVAL_S
            time.sleep(max(0.0, due - time.monotonic()))


def verify(size):
    """Each block must be whole, and in its place."""
    for offset in range(0, size, BLOCK):
        block = sys.stdin.buffer.read(BLOCK)
        if len(block) < BLOCK:
            sys.exit(f"the disk ends at {offset}")
        magic, _, length, _, at, *_ = HEADER.unpack_from(block)
        start = HEADER.size + SHA1.size
        digest = struct.pack("<5I", *struct.unpack(">5I", hashlib.sha1(block[start:]).digest()))
        if (magic, length, at) != (MAGIC, BLOCK, offset) or block[HEADER.size:start] != digest:
            sys.exit(f"the block at {offset} is not what was written there")
    print(f"{size} bytes verified")


def between(before, after):
    """What happened from one sample to the next."""
    def mean_ms(what):
        count = after[f"cairn_{what}_duration_seconds_count"] - before[f"cairn_{what}_duration_seconds_count"]
        seconds = after[f"cairn_{what}_duration_seconds_sum"] - before[f"cairn_{what}_duration_seconds_sum"]
        return seconds / count * 1000 if count else None

    flushes = {float(bound): count - before["flushes"].get(bound, 0.0) for bound, count in after["flushes"].items()}
    total = max(flushes.values(), default=0.0)
    # The upper bound of the bucket that contains the 99th percentile.
    p99 = next((bound for bound, count in sorted(flushes.items()) if total and count >= 0.99 * total), None)
    seconds = after["second"] - before["second"]
    point = {
        "second": after["second"],
        "stored_bytes": after["stored_bytes"],
        "resident_bytes": after["resident_bytes"],
        "journal_bytes": int(after["cairn_journal_bytes"]),
        "writes_per_s": (after["cairn_write_duration_seconds_count"] - before["cairn_write_duration_seconds_count"]) / seconds,
        "uploaded_bytes": after["cairn_put_bytes_total"] - before["cairn_put_bytes_total"],
        "throttled_s": after["cairn_write_throttled_seconds_total"] - before["cairn_write_throttled_seconds_total"],
        "write_mean_ms": mean_ms("write"),
        "read_mean_ms": mean_ms("read"),
        "flush_mean_ms": mean_ms("flush"),
        "flush_p99_ms": p99 * 1000 if p99 not in (None, float("inf")) else None,
    }
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in point.items()}


def fio_latencies(directory):
    """Mean latency of each interval that fio's logs have, by direction: seconds and milliseconds of all jobs."""
    logs = {"read": [], "write": []}
    for path in sorted(Path(directory).glob("latency_lat.*.log")):
        for line in path.read_text(encoding="ascii").splitlines():
            at, value, direction = (int(part) for part in line.split(",")[:3])
            if direction in (0, 1):
                logs["write" if direction else "read"].append([round(at / 1000, 1), round(value / 1e6, 3)])
    return {name: sorted(points) for name, points in logs.items()}


def levels(points):
    """For each value: the middle of the run, its end, and whether the end is no higher than it may be."""
    def of(part, key, how):
        values = [point[key] for point in part if point[key] is not None]
        return None if not values else max(values) if how == "max" else sum(values) / len(values)

    last = points[-1]["second"]
    middle = [point for point in points if last * 0.25 <= point["second"] < last * 0.625]
    end = [point for point in points if point["second"] >= last * 0.625]
    found = {}
    for key, (how, most) in LEVELS.items():
        a, b = of(middle, key, how), of(end, key, how)
        found[key] = {"of": how, "middle": a, "end": b, "most": most, "level": bool(a) and b is not None and b <= a * most}
    return found


PANELS = (
    ("stored, GiB", (("objects", "stored_bytes", 2**30, "#1f6fb4"), ("journal", "journal_bytes", 2**30, "#d9822b"))),
    ("resident memory, MiB", (("gateway", "resident_bytes", 2**20, "#1f6fb4"),)),
    ("latency, ms (mean of 10 s)", (("WRITE", "write_mean_ms", 1, "#1f6fb4"), ("READ", "read_mean_ms", 1, "#3a9a4c"),
                                    ("FLUSH", "flush_mean_ms", 1, "#d9822b"))),
    ("writes per second", (("4 KiB", "writes_per_s", 1, "#1f6fb4"),)),
)
WIDTH, HEIGHT, LEFT, TOP, GAP = 860, 130, 70, 34, 52


def rounded_up(highest):
    """The least number, not less than this one, of which a quarter is 1, 2, 2.5 or 5 times a power of ten."""
    power = 10 ** math.floor(math.log10(highest / 4))
    return next(4 * factor * power for factor in (1, 2, 2.5, 5, 10) if 4 * factor * power >= highest)


def plot(points, title):
    last = points[-1]["second"]
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH + LEFT + 20}" height="{TOP + len(PANELS) * (HEIGHT + GAP)}" '
           'font-family="sans-serif" font-size="12">', '<rect width="100%" height="100%" fill="#ffffff"/>',
           f'<text x="{LEFT}" y="16" font-size="13">{title}</text>']
    for number, (name, lines) in enumerate(PANELS):
        top = TOP + number * (HEIGHT + GAP) + 14
        values = [point[key] / unit for _, key, unit, _ in lines for point in points if point[key] is not None]
        highest = rounded_up(max(values, default=0) or 1)
        out.append(f'<text x="{LEFT}" y="{top - 5}">{name}</text>')
        for part in range(5):
            y = top + HEIGHT - HEIGHT * part / 4
            out.append(f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y}" y2="{y}" stroke="#dddddd"/>')
            out.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{highest * part / 4:,.12g}</text>')
        for part in range(7):
            x = LEFT + WIDTH * part / 6
            out.append(f'<text x="{x}" y="{top + HEIGHT + 15}" text-anchor="middle">{last * part / 6 / 60:.3g} min</text>')
        for place, (label, key, unit, color) in enumerate(lines):
            line = " ".join(f"{LEFT + WIDTH * point['second'] / last:.1f},{top + HEIGHT - HEIGHT * point[key] / unit / highest:.1f}"
                            for point in points if point[key] is not None)
            out.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.5"/>')
            if len(lines) > 1:
                out.append(f'<text x="{LEFT + 220 + place * 80}" y="{top - 5}" fill="{color}">{label}</text>')
    return "\n".join(out + ["</svg>", ""])


def draw(file, picture):
    result = json.loads(Path(file).read_text(encoding="utf-8"))
    title = f"{result['version']}, commit {result['commit']}: {result['command']}"
    Path(picture).write_text(plot(result["samples"], title), encoding="utf-8")


def report(source, samples, fio, logs, out):
    lines = [json.loads(line) for line in Path(samples).read_text(encoding="ascii").splitlines()]
    if len(lines) < 9:
        sys.exit(f"{len(lines)} samples are too few to judge anything: run it for two minutes or more")
    points = [between(before, after) for before, after in zip(lines, lines[1:])]
    text = Path(fio).read_text(encoding="utf-8")
    job = json.loads(text[text.index("{"):])["jobs"][0]
    result = json.loads(Path(source).read_text(encoding="utf-8"))
    result["seconds"] = points[-1]["second"]
    result["written_bytes"] = job["write"]["io_bytes"]
    result["verified_bytes"] = job["read"]["io_bytes"]
    result["uploaded_for_each_byte"] = sum(point["uploaded_bytes"] for point in points) / result["written_bytes"]
    result["most_stored_for_each_live_byte"] = max(point["stored_bytes"] for point in points) / result["disk_bytes"]
    result["most_resident_bytes"] = max(point["resident_bytes"] for point in points)
    result["most_journal_bytes"] = max(point["journal_bytes"] for point in points)
    result["write_p99_ms"] = job["write"]["clat_ns"].get("percentile", {}).get("99.000000", 0) / 1e6
    result["levels"] = levels(points)
    Path(out).mkdir(parents=True, exist_ok=True)
    with open(Path(out) / "soak.json", "w", encoding="utf-8") as file:
        file.write(json.dumps(result, indent=2).removesuffix("\n}"))
        for name, latencies in fio_latencies(logs).items():
            file.write(f',\n  "fio_{name}_latency_ms_by_second": {json.dumps(latencies)}')
        file.write(',\n  "samples": [\n    ' + ",\n    ".join(map(json.dumps, points)) + "\n  ]\n}\n")
    draw(Path(out) / "soak.json", Path(out) / "soak.svg")
    print(json.dumps(result, indent=2))
    if not all(level["level"] for level in result["levels"].values()):
        print("NOT LEVEL", file=sys.stderr)
        sys.exit(3)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["sample", pid, url, store, path]:
            sample(int(pid), url, store, path)
        case ["verify", size]:
            verify(int(size))
        case ["report", source, samples, fio, logs, out]:
            report(source, samples, fio, logs, out)
        case ["draw", file, picture]:
            draw(file, picture)
        case _:
            sys.exit(__doc__)
