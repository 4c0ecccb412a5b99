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

VERSION = 2
HERE = Path(__file__).parent / f"v{VERSION}"
PAGE = 65536
BLOCK = 4096
FRAME = BLOCK + 16


def xxh3_128(data, seed=0):
    return xxhash.xxh3_128_intdigest(data, seed).to_bytes(16, "little")


class Broken(Exception):
    pass


def need(truth, what):
    if not truth:
        raise Broken(what)


class Reader:
    reads = True

    def __init__(self, data, per_chunk):
        """`per_chunk`: the pages of a chunk of the volume, which overlays do not say."""
        self.data, self.at, self.end, self.per_chunk = data, 0, len(data), per_chunk

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

    def __init__(self, per_chunk):
        self.data, self.per_chunk = b"", per_chunk

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
    found = io.raw(length, encoded)
    try:
        return found.decode()
    except UnicodeDecodeError as e:
        raise Broken("not UTF-8") from e


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


def bits(io, length, what, v=None):
    """A set of bits in so many bytes, as a list of numbers."""
    found = int.from_bytes(io.raw(length, v is not None and sum(1 << n for n in v).to_bytes(length, "little")), "little")
    need(found >> what == 0, "a bit beyond the last")
    return [n for n in range(what) if found >> n & 1]


def pages(io, per_chunk, v=None):
    """A page set, as a list of pages."""
    return bits(io, (per_chunk + 63) // 64 * 8, per_chunk, v)


CHUNK, PACK, RECORD = 1, 2, 3


def tag(volume, kind, index, name, number, data):
    context = uuid.UUID(volume).bytes + struct.pack("<BIIQQ", kind, index, name[0], name[1], number)
    need(len(context) == 41, "a context has 41 bytes")
    return xxh3_128(data, xxhash.xxh3_64_intdigest(context))


def tagged(io, length, context, v=None):
    """Bytes and their tag."""
    data = io.raw(length, v)
    found = tag(*context, data)
    need(io.raw(16, found) == found, "tag")
    return data


def frame(io, context, v=None):
    """A block and its tag, as the shortest bytes that the block repeats."""
    block = v and bytes.fromhex(v)
    block = tagged(io, BLOCK, context, block and block * (BLOCK // len(block)))
    period = next(n for n in (1 << i for i in range(13)) if block[:n] * (BLOCK // n) == block)
    return block[:period].hex()


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
    constant(io, "I", BLOCK)
    constant(io, "B", 0)
    constant(io, "B", 0)
    f("created_at_seconds", u64)
    need(is_name(f("name", text)), "name")


def has_characters_of_names(found):
    return all(c.isascii() and (c.isalnum() or c in "._-") for c in found)


def is_name(found):
    return 1 <= len(found) <= 128 and found[0] != "." and has_characters_of_names(found)


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
    state = f("state", u8)
    need(state < 8 and state & 5 != 5 and state & 6 != 4, "state")
    if state & 2:
        current, following = f("name", text), f("next_name", text)
        need(is_name(current) and (following == "" or is_name(following)) and following != current, "names")
    if state & 4:
        f("deleted_at", u64)
        f("seconds_left", u32)


def first_reads(io, _, f):
    def blocks(io, v):
        r = Fields(io, v)
        first, count = r("first", u64), r("count", u32)
        need(count and first + count <= 1 << 41, "a range beyond the largest volume")
        return r.out

    need(f("ranges", lambda io, v: many(io, v, blocks, 16384)), "no range")


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
                v["tag"] = tag(volume, RECORD, 0, slot, number, bytes.fromhex(v["data"])).hex()
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
            need(is_name(c("name", text)), "name of a snapshot")
            c("taken_at_seconds", u64)
        return c.out

    count = u32(io, None if io.reads else len(f.values["changes"]))
    need(kind == 2 or count == 0, "only a commit has changes")
    total = u64(io, None if io.reads else sum(c.get("length", 0) for c in f.values["changes"] if c["kind"] == 1))
    changes = [change(io, None if io.reads else f.values["changes"][i]) for i in range(count)]
    need(all(c["kind"] != 5 for c in changes[:-1]), "a change after a snapshot")
    checksum = xxh3_128(io.data[:io.at] if io.reads else io.data)
    need(io.raw(16, checksum) == checksum, "table checksum")
    f.out["table_checksum"] = checksum.hex()
    for number, c in enumerate(changes):
        if c["kind"] == 1:
            c["at"] = io.at if io.reads else len(io.data)
            c["data"] = io.raw(c["length"], None if io.reads else bytes.fromhex(f.values["changes"][number]["data"])).hex()
            need(c["tag"] == tag(volume, RECORD, 0, slot, number, bytes.fromhex(c["data"])).hex(), "tag")
            total -= c["length"]
    need(total == 0, "bytes of data")
    f.out["changes"] = changes


def root(io, _, f):
    f("id", pair)
    f("commit", pair)
    size, chunk = f("size_bytes", u64), f("chunk_bytes", u32)
    need(chunk & (chunk - 1) == 0 and PAGE <= chunk <= 512 * PAGE, "chunk size")
    need(size and size % 512 == 0 and size <= 65536 * 4096 * chunk, "size")
    known = len(f("origins", origins))

    def page(io, v):
        p = Fields(io, v)
        need(p("page", u32) * chunk * 4096 < size, "a map page beyond the size")
        need(p("origin", u16) <= known, "origin")
        p("id", pair)
        stored, overlaid, hidden = p("stored", u32), p("overlaid", u32), p("hidden", u32)
        need(max(stored, overlaid) <= 4096 * chunk // BLOCK and hidden <= min(stored, overlaid), "blocks")
        return p.out

    found = f("map_pages", lambda io, v: many(io, v, page))
    need(ascending([p["page"] for p in found]), "order")

    def run(io, v):
        r = Fields(io, v)
        first, count = r("first", u32), r("count", u32)
        need(count and (first + count - 1) * chunk * 4096 < size, "a run beyond the size")
        r("commit", pair)
        return r.out

    runs = f("zeroed", lambda io, v: many(io, v, run))
    zeroed = [page for r in runs for page in range(r["first"], r["first"] + r["count"])]
    need(ascending(zeroed), "order of runs")
    need(not set(zeroed) & {p["page"] for p in found}, "a map page both listed and in a run")

    def pack(io, v):
        p = Fields(io, v)
        p("id", pair)
        need(0 < p("frames", u32) < 65536 and 0 < p("live", u32) <= p.out["frames"], "frames")
        return p.out

    need(ascending([p["id"] for p in f("packs", lambda io, v: many(io, v, pack))]), "order of packs")


def root_table(io, _, f):
    f("id", pair)

    def kept(io, v):
        k = Fields(io, v)
        k("root", pair)
        has = flag(io, None if io.reads else v["parent"] is not None)
        k.out["parent"] = pair(io, None if io.reads else v["parent"]) if has else None
        k("commit", pair)
        named, taken_at_seconds = k("snapshot", text), k("taken_at_seconds", u64)
        need(is_name(named) or named == "" and taken_at_seconds == 0, "snapshot")
        k("pins", origins)
        k("retired_at_seconds", u64)
        return k.out

    f("roots", lambda io, v: many(io, v, kept, 4096))


def runs(io, per_chunk, v=None):
    """The runs of an overlay."""
    r = Fields(io, v)
    known = len(r("origins", origins))

    def pack(io, v):
        p = Fields(io, v)
        need(p("origin", u16) <= known, "origin")
        p("id", pair)
        return p.out

    packs = r("packs", lambda io, v: many(io, v, pack, 65534))
    need(all(p not in packs[:n] for n, p in enumerate(packs)), "a pack twice")

    def run(io, v):
        if not io.reads:
            place = {"allocated": 65534, "unallocated": 65535}[v["zeros"]] if "zeros" in v else v["pack"]
            u64(io, v["first"] << 38 | v["count"] - 1 << 32 | place << 16 | v.get("frame", 0))
            return v
        number = u64(io)
        frame, place, count, first = number & 0xffff, number >> 16 & 0xffff, (number >> 32 & 0x3f) + 1, number >> 38
        chunk = 16 * per_chunk
        need(first // chunk == (first + count - 1) // chunk < 4096, "a run beyond its chunk")
        if place >= 65534:
            need(frame == 0, "a frame of zeros")
            return {"first": first, "count": count, "zeros": "allocated" if place == 65534 else "unallocated"}
        need(place < len(packs) and frame + count <= 65535, "a frame that does not exist")
        return {"first": first, "count": count, "pack": place, "frame": frame}

    found = r("runs", lambda io, v: many(io, v, run))
    need(found and all(a["first"] + a["count"] <= b["first"] for a, b in zip(found, found[1:])), "order of runs")
    return r.out


def overlay(io, _, f):
    f("page", u32)
    f("id", pair)
    f("runs", lambda io, v: runs(io, io.per_chunk, v))


def map_page(io, _, f):
    f("page", u32)
    f("id", pair)
    per_chunk = f("pages_per_chunk", u16)
    need(per_chunk & (per_chunk - 1) == 0 and 1 <= per_chunk <= 512, "pages of a chunk")
    known = len(f("origins", origins))

    def some(io, v):
        return pages(io, per_chunk, v)

    def listed(io, v):
        o = Fields(io, v)
        kind = u8(io, None if io.reads else int("runs" in v))
        need(kind in (0, 1), "kind of an overlay")
        if kind == 0:
            need(o("origin", u16) <= known, "origin")
            o("id", pair)
        else:
            o("runs", embedded)
        need(o("chunks", lambda io, v: bits(io, 512, 4096, v)), "an overlay that applies to no chunk")
        return o.out

    def embedded(io, v):
        if not io.reads:
            inner = Writer(per_chunk)
            runs(inner, per_chunk, v)
            io.raw(u32(io, len(inner.data)), inner.data)
            return v
        inner = Reader(io.raw(u32(io)), per_chunk)
        found = runs(inner, per_chunk)
        inner.done()
        return found

    count = u8(io, None if io.reads else len(f.values["overlays"]))
    need(count <= 8, "overlays")
    overlays = f.out["overlays"] = [listed(io, None if io.reads else f.values["overlays"][n]) for n in range(count)]
    objects = [(o["origin"], o["id"]) for o in overlays if "id" in o]
    need(all(o not in objects[:n] for n, o in enumerate(objects)), "an overlay twice")

    def base(io, v):
        b = Fields(io, v)
        need(b("origin", u16) <= known, "origin")
        b("id", pair)
        b("stored", some)
        return b.out

    def damage(io, v):
        d = Fields(io, v)
        need(d("page", u16) < per_chunk, "page")
        d("good_sectors", lambda io, v: hexed(io, 16, v))
        return d.out

    parts = {"base": 1, "birth": 2, "overlaid": 4, "damage": 8, "lost": 16}

    def entry(io, v):
        e = Fields(io, v)
        need(e("slot", u16) < 4096, "slot")
        has = u8(io, None if io.reads else sum(bit for part, bit in parts.items() if part in v))
        need(has < 32, "parts")
        e("allocated", some)
        if has & 2:
            e("birth", pair)
        stored = e("base", base)["stored"] if has & 1 else []
        if has & 4:
            need(1 <= e("overlaid", u16) <= 16 * per_chunk, "overlaid")
        if has & 8:
            need(e("damage", lambda io, v: many(io, v, damage)), "damage")
            need(ascending([d["page"] for d in e.out["damage"]]), "order")
        if has & 16:
            need(e("lost", some) and not set(e.out["lost"]) & set(stored), "lost")
        need(has & 29 or e.out["allocated"], "an entry that says nothing")
        return e.out

    entries = f("entries", lambda io, v: many(io, v, entry))
    need(ascending([e["slot"] for e in entries]), "order")
    applied = {chunk for o in overlays for chunk in o["chunks"]}
    need(applied == {e["slot"] for e in entries if "overlaid" in e}, "an entry without its overlay, or the reverse")
    for e in entries:
        found = located(overlays, e["slot"], 16 * per_chunk)
        if all("runs" in o for o in overlays if e["slot"] in o["chunks"]):
            need(len(found) == e.get("overlaid", 0), "count of overlaid blocks")
        need(len(found) <= e.get("overlaid", 0), "count of overlaid blocks")
        lost = {block // 16 for block, run in found.items() if "pack" in run} & set(e.get("lost", []))
        need(not lost, "a lost page that an overlay locates")


def located(overlays, chunk, blocks):
    """What the embedded overlays say of each block of a chunk; the newest decides."""
    found = {}
    for o in (o for o in overlays if chunk in o["chunks"] and "runs" in o):
        for run in o["runs"]["runs"]:
            if run["first"] // blocks == chunk:
                found.update((run["first"] % blocks + n, run) for n in range(run["count"]))
    return found


def chunk(io, volume, f):
    index, name = f("index", u32), f("id", pair)
    per_chunk = f("pages_per_chunk", u16)
    need(per_chunk & (per_chunk - 1) == 0 and 1 <= per_chunk <= 512, "pages of a chunk")
    constant(io, "B", 0)
    constant(io, "B", 0)
    words = (per_chunk + 63) // 64
    stored = pages(io, per_chunk, None if io.reads else [p["page"] for p in f.values["pages"]])
    f.out["pages"] = []
    for rank, page in enumerate(stored):
        blocks = []
        for block in range(16):
            at = io.at if io.reads else len(io.data)
            need(at == 46 + 8 * words + FRAME * (16 * rank + block), "offset of a frame")
            v = None if io.reads else f.values["pages"][rank]["blocks"][block]
            blocks.append(frame(io, (volume, CHUNK, index, name, 16 * page + block), v))
        f.out["pages"].append({"page": page, "blocks": blocks})


def pack(io, volume, f):
    name = f("id", pair)
    constant(io, "B", 0)
    constant(io, "B", 0)
    count = u32(io, None if io.reads else len(f.values["frames"]))
    need(1 <= count <= 65535, "frames")
    # The index behind the frames says which block each of them is, as the tags must.
    if io.reads:
        need(io.end == 44 + 4120 * count + 16, "length")
        places = struct.unpack_from(f"<{count}Q", io.data, 44 + FRAME * count)
    else:
        places = [v["block"] for v in f.values["frames"]]
    need(ascending(places) and places[-1] < 1 << 41, "order of frames")
    f.out["frames"] = []
    for number, place in enumerate(places):
        v = None if io.reads else f.values["frames"][number]["repeats"]
        f.out["frames"].append({"block": place, "repeats": frame(io, (volume, PACK, 0, name, place), v)})
    tagged(io, 8 * count, (volume, PACK, 0, name, (1 << 64) - 1), struct.pack(f"<{count}Q", *places))


KINDS = {
    "identity": (b"CAIRNVOL", identity), "name": (b"CAIRNNAM", name), "head": (b"CAIRNHED", head),
    "first reads": (b"CAIRNRDS", first_reads), "record": (b"CAIRNJNL", record),
    "root": (b"CAIRNROO", root), "root table": (b"CAIRNTAB", root_table), "map page": (b"CAIRNMAP", map_page),
    "overlay": (b"CAIRNOVL", overlay), "chunk": (b"CAIRNCHK", chunk), "pack": (b"CAIRNPAK", pack),
}


def shard(code, number):
    return f"{xxhash.xxh3_64_intdigest(struct.pack('<' + code, number)) & 0xff:02x}"


def key(kind, volume, v):
    dashed = lambda *numbers: "-".join(map(str, numbers))
    if kind == "name":
        return f"name/{v['name']}"
    if kind == "identity":
        return f"identity/{volume}"
    return f"volume/{volume}/" + {
        "head": lambda: "head",
        "first reads": lambda: "reads",
        "record": lambda: f"journal/{v['slot'][0]:010}/{v['slot'][1]:020}",
        "root": lambda: "root/" + dashed(*v["id"]),
        "root table": lambda: "root/" + dashed(*v["id"]),
        "map page": lambda: "map/" + dashed(v["page"], *v["id"]),
        "overlay": lambda: "overlay/" + dashed(v["page"], *v["id"]),
        "chunk": lambda: f"chunk/{shard('I', v['index'])}/" + dashed(v["index"], *v["id"]),
        "pack": lambda: f"pack/{shard('Q', v['id'][1])}/" + dashed(*v["id"]),
    }[kind]()


def decode(data, per_chunk):
    need(len(data) >= 42 and xxh3_128(data[:-16]) == data[-16:], "checksum")
    io = Reader(data[:-16], per_chunk)
    magic = io.raw(8)
    kind = next((k for k, (m, _) in KINDS.items() if m == magic), None)
    need(kind, f"magic {magic!r}")
    need(u16(io) == VERSION, "version")
    volume = uid(io)
    f = Fields(io, None)
    KINDS[kind][1](io, volume, f)
    io.done()
    return {"kind": kind, "volume": volume, "key": key(kind, volume, f.out), "fields": f.out}


def encode(value, per_chunk):
    magic, describe = KINDS[value["kind"]]
    io = Writer(per_chunk)
    io.raw(8, magic)
    u16(io, VERSION)
    uid(io, value["volume"])
    describe(io, value["volume"], Fields(io, value["fields"]))
    return io.data + xxh3_128(io.data)


def main():
    expected = json.loads((HERE / "golden.json").read_text())
    per_chunk = expected["identity.bin"]["fields"]["chunk_bytes"] // PAGE
    if sys.argv[1:] == ["--write"]:
        for file, value in expected.items():
            with open(HERE / file, "xb") as out:
                out.write(encode(value, per_chunk))
            print(f"{file}: written")
        expected = {file: decode((HERE / file).read_bytes(), per_chunk) for file in expected}
        (HERE / "golden.json").write_text(json.dumps(expected, indent=1) + "\n")
        return 0
    differ = 0
    for file in sorted(set(expected) | {path.name for path in HERE.glob("*.bin")}):
        try:
            found = decode((HERE / file).read_bytes(), per_chunk)
        except (Broken, OSError) as e:
            found = str(e)
        if found != expected.get(file):
            differ += 1
            print(f"{file}: {json.dumps(found)}\nis not {json.dumps(expected.get(file))}")
    print(f"{len(expected)} golden files, {differ} differ")
    return differ > 0


sys.exit(main())
