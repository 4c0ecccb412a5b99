#!/usr/bin/env python3
"""Reads and writes an incremental stream, from docs/FORMAT.md alone.

usage: stream.py            decodes the golden stream and compares it with what this file says
       stream.py --write    makes the golden stream of a new format version

Needs the package xxhash.
"""
import struct
import sys
import uuid
from pathlib import Path

import xxhash

VERSION = 2
FILE = Path(__file__).parent / f"v{VERSION}" / "incremental.stream"
VOLUME = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")

BASE = {"root": (7, 10), "sum": bytes(range(0x40, 0x50)), "commit": (7, 2), "size": 1 << 30, "name": "monday", "taken": 1_700_000_000}
RESULT = {"root": (8, 44), "sum": bytes(range(0x60, 0x70)), "commit": (8, 900), "size": (1 << 30) + 1536, "name": "tuesday.2_b-c"}
RESULT["taken"] = 1_700_086_400
BASE_DIGEST = bytes(range(32))
RESULT_DIGEST = bytes(range(0x80, 0xa0))
EXTENTS = [
    (0, bytes(range(256)) * 16),
    (4096, 8192),
    (65536, b"\xa5\x5a" * 256),
    (1 << 20, (1 << 30) - (1 << 20)),
    (1 << 30, b"\x01" * 1536),
]


def checksum(data):
    return xxhash.xxh3_128_intdigest(data).to_bytes(16, "little")


def state(s):
    name = s["name"].encode()
    fields = struct.pack("<IQ16sIQQB", *s["root"], s["sum"], *s["commit"], s["size"], len(name))
    return fields + name + struct.pack("<Q", s["taken"])


def copy_name(s):
    return f"copy-of-{VOLUME.hex}-{int.from_bytes(checksum(state(s)), 'little'):032x}"


def encode():
    body = struct.pack("<I", 4 << 20) + state(BASE) + state(RESULT) + b"\x01" + BASE_DIGEST
    out = b"CAIRNINC" + struct.pack("<H", VERSION) + VOLUME.bytes + struct.pack("<I", 30 + len(body) + 16) + body
    out += checksum(out)
    data = zeros = 0
    for offset, content in EXTENTS:
        if isinstance(content, bytes):
            out += struct.pack("<BQI", 1, offset, len(content)) + content
            data += len(content)
        else:
            out += struct.pack("<BQQ", 2, offset, content)
            zeros += content
        out += checksum(out)
    out += struct.pack("<BQQQB", 3, len(EXTENTS), data, zeros, 1) + RESULT_DIGEST
    return out + checksum(out)


class Reader:
    """Takes fields from the front of a stream. Each checksum is that of everything before it."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, code):
        found = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return found if len(found) > 1 else found[0]

    def raw(self, length):
        self.at += length
        assert self.at <= len(self.data), "ends too early"
        return self.data[self.at - length:self.at]

    def verify(self):
        expected = checksum(self.data[:self.at])
        assert self.raw(16) == expected, f"checksum before byte {self.at}"

    def state(self):
        root, root_sum, commit, size = self.take("IQ"), self.raw(16), self.take("IQ"), self.take("Q")
        name = self.raw(self.take("B")).decode()
        return {"root": root, "sum": root_sum, "commit": commit, "size": size, "name": name, "taken": self.take("Q")}

    def digest(self):
        return self.raw(32) if self.take("B") else None


def decode(data):
    io = Reader(data)
    assert io.raw(8) == b"CAIRNINC" and io.take("H") == VERSION, "magic and version"
    volume, length = uuid.UUID(bytes=io.raw(16)), io.take("I")
    chunk, base, result, digest = io.take("I"), io.state(), io.state(), io.digest()
    io.verify()
    assert io.at == length, "length of the header"
    extents, end = [], 0
    while (kind := io.take("B")) != 3:
        offset = io.take("Q")
        content = io.raw(io.take("I")) if kind == 1 else io.take("Q")
        assert kind in (1, 2), "kind"
        size = len(content) if kind == 1 else content
        assert offset >= end and size and offset % 512 == size % 512 == 0 and (kind == 2 or size <= 1 << 20), "extent"
        end = offset + size
        assert end <= result["size"], "an extent beyond the disk"
        io.verify()
        extents.append((offset, content))
    totals, result_digest = io.take("QQQ"), io.digest()
    io.verify()
    assert io.at == len(data), "bytes follow the end"
    sizes = [[len(c) for _, c in extents if isinstance(c, bytes)], [c for _, c in extents if not isinstance(c, bytes)]]
    assert totals == (len(extents), sum(sizes[0]), sum(sizes[1])), "totals"
    return volume, chunk, base, result, digest, extents, result_digest


def main():
    if sys.argv[1:] == ["--write"]:
        with open(FILE, "xb") as out:
            out.write(encode())
        return 0
    found = decode(FILE.read_bytes())
    differs = found != (VOLUME, 4 << 20, BASE, RESULT, BASE_DIGEST, EXTENTS, RESULT_DIGEST) or FILE.read_bytes() != encode()
    print(f"1 golden stream, {int(differs)} differ; a copy of its base has the snapshot {copy_name(BASE)}")
    return int(differs)


sys.exit(main())
