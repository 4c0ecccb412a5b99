#!/usr/bin/env python3
"""Reads and writes the objects of a volume, from docs/FORMAT.md alone.

usage: codec.py            decodes every golden file and compares it with what golden.json says
       codec.py --write    makes the golden files of a new format version from golden.json

Each object is described once, by a function that a Reader and a Writer both run. Needs the package xxhash.
"""
import json
import struct
import sys
import uuid
from pathlib import Path

import xxhash

VERSION = 1
HERE = Path(__file__).parent / f"v{VERSION}"
PAGE = 65536


def xxh3_128(data):
    return xxhash.xxh3_128_intdigest(data).to_bytes(16, "little")


class Broken(Exception):
    pass


def need(truth, what):
    if not truth:
        raise Broken(what)


class Reader:
    reads = True

    def __init__(self, data):
        self.data, self.at, self.end = data, 0, len(data)

    def raw(self, length, _=None):
        need(self.at + length <= self.end, "ends too early")
        self.at += length
        return self.data[self.at - length:self.at]

    def number(self, code, _=None):
        return struct.unpack("<" + code, self.raw(struct.calcsize(code)))[0]

    def done(self):
        need(self.at == self.end, "bytes follow the last field")


class Writer:
    reads = False

    def __init__(self):
        self.data = b""

    def raw(self, length, value):
        need(len(value) == length, f"{value!r} has not {length} bytes")
        self.data += value
        return value

    def number(self, code, value):
        self.data += struct.pack("<" + code, value)
        return value

    def done(self):
        pass


# Fields. `io` is a Reader or a Writer; each takes the value to write and gives the value read or written.

def u8(io, v=None): return io.number("B", v)
def u16(io, v=None): return io.number("H", v)
def u32(io, v=None): return io.number("I", v)
def u64(io, v=None): return io.number("Q", v)


def hexed(io, length, v=None):
    return io.raw(length, None if v is None else bytes.fromhex(v)).hex()


def uid(io, v=None):
    return str(uuid.UUID(bytes=io.raw(16, v and uuid.UUID(v).bytes)))


def text(io, v=None):
    encoded = v.encode() if v is not None else None
    length = u8(io, encoded is not None and len(encoded))
    return io.raw(length, encoded).decode()


def pair(io, v=None):
    v = v or [None, None]
    return [u32(io, v[0]), u64(io, v[1])]


def flag(io, v=None):
    number = u8(io, v is not None and int(v))
    need(number in (0, 1), "not a flag")
    return bool(number)


def constant(io, code, value):
    need(io.number(code, value) == value, f"not {value}")


def many(io, v, item, most=None):
    count = u32(io, v is not None and len(v))
    need(most is None or count <= most, "too many")
    return [item(io, v[i] if v is not None else None) for i in range(count)]


def origins(io, v=None):
    return many(io, v, uid, 1024)


def pages(io, per_chunk, v=None):
    """A page set, as a list of pages."""
    words = (per_chunk + 63) // 64
    bits = int.from_bytes(io.raw(8 * words, v is not None and sum(1 << p for p in v).to_bytes(8 * words, "little")), "little")
    need(bits >> per_chunk == 0, "a page beyond the chunk")
    return [p for p in range(per_chunk) if bits >> p & 1]


def tag(volume, where, index, name, number, data):
    context = uuid.UUID(volume).bytes + struct.pack("<BIIQI", where, index, name[0], name[1], number)
    need(len(context) == 37, "a context has 37 bytes")
    return xxh3_128(context + data)


def ascending(numbers):
    return all(a < b for a, b in zip(numbers, numbers[1:]))


class Fields:
    """The fields of an object: `f.name = kind(...)` in order, whichever way it goes."""

    def __init__(self, io, values):
        self.io, self.values, self.out = io, values, {}

    def __call__(self, name, kind, *more):
        value = None if self.io.reads else self.values[name]
        self.out[name] = kind(self.io, *more, value)
        return self.out[name]


# Objects. Each gives the fields, and may need the volume.

def identity(io, _, f):
    need(f("features", u32) == 0 and f("write_features", u32) == 0, "unknown features")
    size = f("chunk_bytes", u32)
    need(size & (size - 1) == 0 and PAGE <= size <= 512 * PAGE, "chunk size")
    constant(io, "I", PAGE)
    constant(io, "B", 0)
    constant(io, "B", 0)
    f("created_at_seconds", u64)
    need(is_name(f("name", text)), "name")


def is_name(found):
    return 1 <= len(found) <= 128 and found[0] != "." and all(c.isascii() and (c.isalnum() or c in "._-") for c in found)


def name(io, _, f):
    f("version", u64)
    state = f("state", u8)
    found = f("name", text)
    need(state == 0 and found == "" or state == 1 and is_name(found), "name")


def head(io, _, f):
    f("version", u64)
    epoch = f("epoch", u32)
    f("holder", lambda io, v: f"{int.from_bytes(io.raw(16, v and int(v, 16).to_bytes(16, 'little')), 'little'):032x}")
    need(len(f("holder_name", text).encode()) <= 200, "holder's name")
    f("lease_ms", u32)
    need(f("checkpoint", pair)[0] <= epoch, "checkpoint of a later epoch")
    f("checkpoint_checksum", lambda io, v: hexed(io, 16, v))
    f("root", pair)
    f("root_table", pair)
    f("wrapped_key", lambda io, v: hexed(io, u8(io, v is not None and len(v) // 2), v))
    f("local_journal", text)
    need(f("state", u8) in (0, 1), "state")


def record(io, volume, f):
    kind = f("kind", u8)
    need(kind in (1, 2, 3), "kind")
    constant(io, "B", 0)
    slot, writer = f("slot", pair), f("writer", u32)
    need({1: writer == slot[0] and slot[1] == 1, 2: writer == slot[0] and slot[1] > 1, 3: writer > slot[0] and slot[1] > 0}[kind], "writer")
    f("nonce", lambda io, v: f"{u64(io, v and int(v, 16)):016x}")
    f("previous", lambda io, v: hexed(io, 16, v))
    per_chunk = f("pages_per_chunk", u16)
    need(per_chunk & (per_chunk - 1) == 0 and 1 <= per_chunk <= 512, "pages of a chunk")
    numbers = iter(range(1 << 32))

    def change(io, v):
        number = next(numbers)
        c = Fields(io, v)
        kind = c("kind", u8)
        need(1 <= kind <= 5, "kind of a change")
        if kind == 1:
            offset, length = c("offset", u64), c("length", u32)
            need(length and offset % PAGE + length <= PAGE, "data beyond its page")
            if not io.reads:
                v["tag"] = tag(volume, 3, 0, slot, number, bytes.fromhex(v["data"])).hex()
            c("tag", lambda io, v: hexed(io, 16, v))
        elif kind == 2:
            offset, length = c("offset", u64), c("length", u64)
            need(length and offset + length < 1 << 64, "zeros")
            c("hole", flag)
        elif kind == 3:
            c("index", u32)
            c("id", pair)
            c("stored", lambda io, v: pages(io, per_chunk, v))
        elif kind == 4:
            c("size_bytes", u64)
        else:
            c("name", text)
        return c.out

    count = u32(io, None if io.reads else len(f.values["changes"]))
    need(kind == 2 or count == 0, "only a commit has changes")
    total = u64(io, None if io.reads else sum(c.get("length", 0) for c in f.values["changes"] if c["kind"] == 1))
    changes = [change(io, None if io.reads else f.values["changes"][i]) for i in range(count)]
    for number, c in enumerate(changes):
        if c["kind"] == 1:
            c["at"] = io.at if io.reads else len(io.data)
            c["data"] = io.raw(c["length"], None if io.reads else bytes.fromhex(f.values["changes"][number]["data"])).hex()
            need(c["tag"] == tag(volume, 3, 0, slot, number, bytes.fromhex(c["data"])).hex(), "tag")
            total -= c["length"]
    need(total == 0, "bytes of data")
    f.out["changes"] = changes


def root(io, _, f):
    f("id", pair)
    f("commit", pair)
    size, chunk = f("size_bytes", u64), f("chunk_bytes", u32)
    need(size and size % 512 == 0, "size")
    known = len(f("origins", origins))

    def page(io, v):
        p = Fields(io, v)
        need(p("page", u32) * chunk * 4096 < size, "a map page beyond the size")
        need(p("origin", u16) <= known, "origin")
        p("id", pair)
        return p.out

    found = f("map_pages", lambda io, v: many(io, v, page, 65536))
    need(ascending([p["page"] for p in found]), "order")

    def run(io, v):
        r = Fields(io, v)
        first, count = r("first", u32), r("count", u32)
        need(count and (first + count - 1) * chunk * 4096 < size, "a run beyond the size")
        r("commit", pair)
        return r.out

    runs = f("zeroed", lambda io, v: many(io, v, run, 65536))
    zeroed = [page for r in runs for page in range(r["first"], r["first"] + r["count"])]
    need(ascending(zeroed), "order of runs")
    need(not set(zeroed) & {p["page"] for p in found}, "a map page both listed and in a run")


def root_table(io, _, f):
    f("id", pair)

    def kept(io, v):
        k = Fields(io, v)
        k("root", pair)
        has = flag(io, None if io.reads else v["parent"] is not None)
        k.out["parent"] = pair(io, None if io.reads else v["parent"]) if has else None
        k("commit", pair)
        k("snapshot", text)
        k("pins", origins)
        k("retired_at_seconds", u64)
        return k.out

    f("roots", lambda io, v: many(io, v, kept, 4096))


def map_page(io, _, f):
    f("page", u32)
    f("id", pair)
    per_chunk = f("pages_per_chunk", u16)
    known = len(f("origins", origins))

    def some(io, v):
        return pages(io, per_chunk, v)

    def base(io, v):
        b = Fields(io, v)
        need(b("origin", u16) <= known, "origin")
        b("id", pair)
        b("stored", some)
        return b.out

    def pack(io, v):
        p = Fields(io, v)
        need(p("origin", u16) <= known, "origin")
        p("id", pair)
        p("first_frame", u32)
        p("pages", some)
        return p.out

    def damage(io, v):
        d = Fields(io, v)
        need(d("page", u16) < per_chunk, "page")
        d("good_sectors", lambda io, v: hexed(io, 16, v))
        return d.out

    parts = {"base": 1, "birth": 2, "packs": 4, "damage": 8, "lost": 16}

    def entry(io, v):
        e = Fields(io, v)
        need(e("slot", u16) < 4096, "slot")
        has = u8(io, None if io.reads else sum(bit for part, bit in parts.items() if part in v))
        need(has < 32, "parts")
        stored = []
        e("allocated", some)
        if has & 2:
            e("birth", pair)
        if has & 1:
            stored += e("base", base)["stored"]
        if has & 4:
            found = [p for pack in e("packs", lambda io, v: many(io, v, pack, 64)) for p in pack["pages"]]
            need(e.out["packs"] and len(found) == len(set(found)), "packs")
            stored += found
        if has & 8:
            need(e("damage", lambda io, v: many(io, v, damage)), "damage")
            need(ascending([d["page"] for d in e.out["damage"]]), "order")
        if has & 16:
            need(e("lost", some) and not set(e.out["lost"]) & set(stored), "lost")
        need(has & 29 or e.out["allocated"], "an entry that says nothing")
        return e.out

    need(ascending([e["slot"] for e in f("entries", lambda io, v: many(io, v, entry))]), "order")


def chunk(io, volume, f):
    index, name = f("index", u32), f("id", pair)
    per_chunk = f("pages_per_chunk", u16)
    constant(io, "B", 0)
    constant(io, "B", 0)
    words = (per_chunk + 63) // 64
    stored = pages(io, per_chunk, None if io.reads else [p["page"] for p in f.values["pages"]])
    f.out["pages"] = []
    for rank, page in enumerate(stored):
        if io.reads:
            need(io.at == 46 + 8 * words + 65552 * rank, "offset of a frame")
            payload = io.raw(PAGE)
            need(io.raw(16) == tag(volume, 1, index, name, page, payload), "tag")
        else:
            payload = bytes.fromhex(f.values["pages"][rank]["repeats"])
            payload = io.raw(PAGE, payload * (PAGE // len(payload)))
            io.raw(16, tag(volume, 1, index, name, page, payload))
        period = next(n for n in (1 << i for i in range(17)) if payload[:n] * (PAGE // n) == payload)
        f.out["pages"].append({"page": page, "repeats": payload[:period].hex()})


KINDS = {
    "identity": (b"CAIRNVOL", identity), "name": (b"CAIRNNAM", name), "head": (b"CAIRNHED", head), "record": (b"CAIRNJNL", record),
    "root": (b"CAIRNROO", root), "root table": (b"CAIRNTAB", root_table), "map page": (b"CAIRNMAP", map_page), "chunk": (b"CAIRNCHK", chunk),
}


def shard(number):
    return f"{xxhash.xxh3_64_intdigest(struct.pack('<I', number)) & 0xff:02x}"


def key(kind, volume, v):
    dashed = lambda *numbers: "-".join(map(str, numbers))
    if kind == "name":
        return f"name/{v['name']}"
    if kind == "identity":
        return f"identity/{volume}"
    return f"volume/{volume}/" + {
        "head": lambda: "head",
        "record": lambda: f"journal/{v['slot'][0]:010}/{v['slot'][1]:020}",
        "root": lambda: "root/" + dashed(*v["id"]),
        "root table": lambda: "root/" + dashed(*v["id"]),
        "map page": lambda: "map/" + dashed(v["page"], *v["id"]),
        "chunk": lambda: f"chunk/{shard(v['index'])}/" + dashed(v["index"], *v["id"]),
    }[kind]()


def decode(data):
    need(len(data) >= 42 and xxh3_128(data[:-16]) == data[-16:], "checksum")
    io = Reader(data[:-16])
    magic = io.raw(8)
    kind = next((k for k, (m, _) in KINDS.items() if m == magic), None)
    need(kind, f"magic {magic!r}")
    need(u16(io) == VERSION, "version")
    volume = uid(io)
    f = Fields(io, None)
    KINDS[kind][1](io, volume, f)
    io.done()
    return {"kind": kind, "volume": volume, "key": key(kind, volume, f.out), "fields": f.out}


def encode(value):
    magic, describe = KINDS[value["kind"]]
    io = Writer()
    io.raw(8, magic)
    u16(io, VERSION)
    uid(io, value["volume"])
    describe(io, value["volume"], Fields(io, value["fields"]))
    return io.data + xxh3_128(io.data)


def main():
    expected = json.loads((HERE / "golden.json").read_text())
    if sys.argv[1:] == ["--write"]:
        for file, value in expected.items():
            with open(HERE / file, "xb") as out:
                out.write(encode(value))
            print(f"{file}: written")
        expected = {file: decode((HERE / file).read_bytes()) for file in expected}
        (HERE / "golden.json").write_text(json.dumps(expected, indent=1) + "\n")
        return 0
    differ = 0
    for file in sorted(set(expected) | {path.name for path in HERE.glob("*.bin")}):
        try:
            found = decode((HERE / file).read_bytes())
        except (Broken, OSError) as e:
            found = str(e)
        if found != expected.get(file):
            differ += 1
            print(f"{file}: {json.dumps(found)}\nis not {json.dumps(expected.get(file))}")
    print(f"{len(expected)} golden files, {differ} differ")
    return differ > 0


sys.exit(main())
