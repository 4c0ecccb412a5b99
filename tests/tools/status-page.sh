#!/bin/bash
# Takes the picture of the status page in README.md, docs/status-page.png, while a virtual machine creates a file system
# on the disk and writes to it. docs/status-page.json records how the picture was taken.
#
#   cargo build --release && tests/tools/status-page.sh
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

CAIRN=${CAIRN_TEST_BINARY:-${CARGO_TARGET_DIR:-$ROOT/target}/release/cairn}
WORK=$(mktemp -d)
PORT=$((20000 + RANDOM % 9000))
trap 'kill "${PIDS[@]}" 2>/dev/null || true; wait; rm -rf "$WORK"' EXIT
PIDS=()

# said FILE TEXT: waits until the file contains the text.
said() {
    until grep -q "$2" "$1" 2>/dev/null; do
        kill -0 "${PIDS[@]}" 2>/dev/null || { cat "$1" >&2; die "it ended before it said $2"; }
        sleep 0.2
    done
}

env -u CAIRN_TEST_BINARY CAIRN_ADMIN__LISTEN=127.0.0.1:$PORT "$CAIRN" serve --store "file://$WORK/store" --create vm=1GiB \
    --listen "unix:$WORK/nbd.sock" >"$WORK/cairn.log" 2>&1 &
PIDS+=($!)
said "$WORK/cairn.log" "listening on"
{ echo "DISK=/dev/vda"; cat "$ROOT/tests/vm/workload.sh"; } >"$WORK/script"
qemu-system-x86_64 -accel tcg,thread=multi -cpu max -m 512 -nodefaults -no-user-config -no-reboot -display none \
    -serial stdio -kernel "$TOOLS/vm/current/vmlinuz" -initrd "$TOOLS/vm/current/initrd" \
    -append "console=ttyS0 quiet panic=-1" -fw_cfg "name=opt/script,file=$WORK/script" \
    -drive "file=nbd+unix:///vm?socket=$WORK/nbd.sock,format=raw,if=virtio,discard=unmap" >"$WORK/vm.log" 2>&1 &
PIDS+=($!)
said "$WORK/vm.log" "vm: unsynced 50"

"$TOOLS/playwright/bin/python" - "http://127.0.0.1:$PORT/" "$ROOT/docs/status-page.png" <<'PYTHON'
import sys
from playwright.sync_api import expect, sync_playwright

with sync_playwright() as driver:
    browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"])
    page = browser.new_page(viewport={"width": 1000, "height": 760})
    page.goto(sys.argv[1] + "#/volume/vm")
    expect(page.locator("#connections tr")).to_have_count(1)
    # The graphs need several updates. Wait until some data is dirty, so that the picture shows it.
    for _ in range(15):
        with page.expect_response(lambda answer: answer.url.endswith("/status")):
            pass
    expect(page.locator("#lines [data-of=write] b")).not_to_have_text("0 B/s", timeout=60_000)
    expect(page.locator("#sums")).not_to_contain_text(", 0 B not durable", timeout=60_000)
    page.screenshot(path=sys.argv[2])
    browser.close()
PYTHON

jq -n --arg commit "$(git -C "$ROOT" rev-parse HEAD)" --arg machine "$(nproc) cores, $(uname -srm)" \
    --arg command "tests/tools/status-page.sh" --arg version "$("$CAIRN" --version)" \
    '{shows: "the status page while a virtual machine writes to the disk", $command, $version, $commit, $machine}' \
    >"$ROOT/docs/status-page.json"
