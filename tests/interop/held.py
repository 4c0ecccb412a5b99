"""Two connections and a FLUSH on each, while the store holds the commit: neither may be answered before it is durable.

Prints `waiting` once both FLUSHes are at the server and neither has been answered, then `answered` when both were.
"""

import sys

import nbd

one, two = nbd.NBD(), nbd.NBD()
for handle in (one, two):
    handle.connect_uri(sys.argv[1])
one.pwrite(b"held" * 1024, 1 << 20)
first = one.aio_flush()
# Nothing is newly dirty for this one, but what was answered is not durable yet.
second = two.aio_flush()
third = two.aio_flush()

# Each connection is served in order of arrival up to here, so the FLUSHes before these reads have been taken.
for handle in (one, two):
    assert handle.pread(4, 1 << 20) == b"held"
answered = [one.aio_command_completed(first), two.aio_command_completed(second), two.aio_command_completed(third)]
assert answered == [False] * 3, "a FLUSH was answered before its commit was durable"
print("waiting", flush=True)

for handle, cookie in ((one, first), (two, second), (two, third)):
    while not handle.aio_command_completed(cookie):
        handle.poll(-1)
print("answered", flush=True)
