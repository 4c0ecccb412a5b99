"""Writes numbered blocks over NBD and says which of them were answered; later, checks what became of them.

    blocks.py write URI       writes block after block, several in flight on two connections, with a FLUSH after each
                              batch. Prints `written N` when blocks 0 to N were answered and `flushed N` when a FLUSH
                              sent after that was. At the first error prints `failed COMMAND ERRNO`, then tries
                              each command once more and prints the same for each that fails.
    blocks.py check URI N     blocks 0 to N hold what was written; every later one that, or zeros, never a part of it.

A block is 4 KiB. Numbers are spread over the disk so that neighbours in time are far apart in space.
"""

import errno
import sys

import nbd

BLOCK = 4096
BATCH = 16


def place(number, blocks):
    # The factor is odd and the count a power of two, so no two numbers meet before all blocks are used.
    return number * 48271 % blocks * BLOCK


def content(number):
    return (b"block %12d " % number) * (BLOCK // 19) + bytes(BLOCK % 19 - 1) + b"."


def attempt(name, call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        print("failed", name, errno.errorcode.get(error.errnum, error.string), flush=True)
        return False
    return True


def write(uri):
    handles = [nbd.NBD(), nbd.NBD()]
    for handle in handles:
        handle.connect_uri(uri)
    blocks = handles[0].get_size() // BLOCK
    assert blocks & (blocks - 1) == 0, "the number of blocks is a power of two"
    for first in range(0, blocks, BATCH):
        if not attempt("WRITE", batch, handles, first, blocks):
            break
        print("written", first + BATCH - 1, flush=True)
        # On either connection: a FLUSH covers what was answered on any.
        if not attempt("FLUSH", handles[first // BATCH % 2].flush):
            break
        print("flushed", first + BATCH - 1, flush=True)
    attempt("READ", handles[0].pread, BLOCK, 0)
    attempt("WRITE", handles[0].pwrite, bytes(BLOCK), place(blocks - 1, blocks))
    attempt("FLUSH", handles[1].flush)
    attempt("TRIM", handles[1].trim, BLOCK, place(blocks - 1, blocks))


def batch(handles, first, blocks):
    pending = []
    for number in range(first, first + BATCH):
        handle = handles[number % len(handles)]
        data = nbd.Buffer.from_bytearray(bytearray(content(number)))
        pending.append((handle, handle.aio_pwrite(data, place(number, blocks)), data))
    for handle, cookie, _ in pending:
        while not handle.aio_command_completed(cookie):
            handle.poll(-1)


def check(uri, last):
    handle = nbd.NBD()
    handle.connect_uri(uri)
    blocks = handle.get_size() // BLOCK
    for number in range(min(blocks, last + 1 + 4 * BATCH)):
        found = handle.pread(BLOCK, place(number, blocks))
        if found == content(number) or (number > last and found == bytes(BLOCK)):
            continue
        sys.exit(f"block {number} of {last}: {bytes(found[:40])!r}")
    handle.shutdown()
    print("checked", last + 1)


if sys.argv[1] == "write":
    write(sys.argv[2])
else:
    check(sys.argv[2], int(sys.argv[3]))
