"""Every NBD command and flag, through libnbd, against the URI in the first argument: an empty disk of 64 MiB.

Libnbd's strict mode is off where the point is what the server says to a request that a polite client never sends.
"""

import errno
import sys

import nbd

URI = sys.argv[1]
MIB = 1 << 20
SIZE = 64 * MIB


def connect(strict=True):
    handle = nbd.NBD()
    if not strict:
        handle.set_strict_mode(0)
    handle.connect_uri(URI)
    return handle


def refused(expected, call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errnum == expected, f"{error.string}: {errno.errorcode.get(error.errnum)}"
    else:
        raise AssertionError(f"{call} {args} was not refused")


one, two = connect(), connect()
assert one.get_size() == SIZE
assert one.get_protocol() == "newstyle-fixed"
for can in ("flush", "fua", "trim", "zero", "fast_zero", "cache", "multi_conn"):
    assert getattr(one, "can_" + can)(), can
assert not one.is_read_only()

# Writes of odd lengths at odd offsets; what one connection was answered, the other sees.
one.pwrite(b"x" * 1000, 4095)
assert two.pread(1002, 4094) == b"\0" + b"x" * 1000 + b"\0"
two.pwrite(b"y", 4100, nbd.CMD_FLAG_FUA)
assert one.pread(7, 4097) == b"xxxyxxx"
one.flush()

# The largest payload, to the last byte of the disk and back.
big = bytes(range(256)) * (32 * MIB // 256)
one.pwrite(big, SIZE - len(big), nbd.CMD_FLAG_FUA)
assert two.pread(len(big), SIZE - len(big)) == big

# Zeroing: plain, without a hole, fast, forced; over the edges of blocks and chunks.
before = bytearray(two.pread(16 * MIB, 40 * MIB))
for flags, offset, length in (
    (0, 1, 511),
    (nbd.CMD_FLAG_NO_HOLE, 4 * MIB - 100, 200),
    (nbd.CMD_FLAG_FAST_ZERO, 5 * MIB, 5 * MIB),
    (nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE, 11 * MIB + 4000, 5000),
):
    one.zero(length, 40 * MIB + offset, flags)
    before[offset : offset + length] = bytes(length)
assert two.pread(len(before), 40 * MIB) == before

# A trimmed range reads as zeros; its neighbours stay.
one.trim(3 * MIB + 17, 50 * MIB + 5)
before[10 * MIB + 5 : 13 * MIB + 22] = bytes(3 * MIB + 17)
assert two.pread(len(before), 40 * MIB) == before
two.trim(4096, 60 * MIB, nbd.CMD_FLAG_FUA)
assert one.pread(4098, 60 * MIB - 1) == big[28 * MIB - 1 : 28 * MIB] + bytes(4096) + big[28 * MIB + 4096 : 28 * MIB + 4097]

# CACHE is a hint: it changes nothing and succeeds.
one.cache(8 * MIB, 40 * MIB)

# Many requests at once on each connection, answered in any order; a write and the read after its answer.
pending = []
for index in range(200):
    handle = one if index % 2 else two
    data = nbd.Buffer.from_bytearray(bytearray([index]) * 3000)
    pending.append((handle, handle.aio_pwrite(data, index * 3000), data))
for handle, cookie, _ in pending:
    while not handle.aio_command_completed(cookie):
        handle.poll(-1)
one.flush()
assert one.pread(600_000, 0) == b"".join(bytes([index]) * 3000 for index in range(200))

# What is outside the disk is refused, and the connection goes on.
rude = connect(strict=False)
refused(errno.EINVAL, rude.pread, 2, SIZE - 1)
refused(errno.ENOSPC, rude.pwrite, b"ab", SIZE - 1)
refused(errno.EINVAL, rude.trim, 2, SIZE - 1)
assert rude.pread(4, 0) == bytes(4)

# An unknown export is refused.
stranger = nbd.NBD()
stranger.set_opt_mode(True)
stranger.connect_uri(URI)
stranger.set_export_name("no such disk")
refused(errno.ENOENT, stranger.opt_go)
stranger.set_export_name("disk")
stranger.opt_go()
assert stranger.pread(1, 3000) == b"\1"

for handle in (one, two, rude, stranger):
    handle.shutdown()
