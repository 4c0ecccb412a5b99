// The page of one volume: lines of the last minutes, the map, facts, snapshots, connections, commands.
import { act, ask, bytes, duration, element, pathOf, stateOf } from "./status.js";

const COLUMNS = 128;
const CELLS = 1024;
const MAP_EVERY_MS = 6000;
const SNAPSHOTS_EVERY_MS = 6000;
const LEAST_POINTS = 30; // a minute
const byId = (id) => document.getElementById(id);
let shown = { name: null, mapAt: -Infinity, snapshotsAt: -Infinity };

const LINES = [
  ["read", "Read", (value) => `${bytes(value)}/s`],
  ["write", "Write", (value) => `${bytes(value)}/s`],
  ["flush", "Flush latency", duration],
  ["dirty", "Not durable", bytes],
];

// A line of what was measured, which ends at the right edge; where nothing was, it goes on from the last value. The first
// minute fills the width, so that a page that was just opened shows more than a few pixels.
function line([key, title, show], points) {
  const figure = byId("line").content.cloneNode(true).querySelector("figure");
  const [above, below] = figure.querySelectorAll("figcaption");
  figure.dataset.of = key;
  const known = points.filter((point) => point[key] !== null).map((point) => point[key]);
  const most = Math.max(0, ...known);
  above.textContent = title;
  figure.querySelector("b").textContent = known.length ? show(known.at(-1)) : "–";
  let last = 0;
  const span = Math.max(points.length, LEAST_POINTS);
  figure.querySelector("polyline").setAttribute("points", points.map((point, at) => {
    last = point[key] ?? last;
    return `${((150 * (span - points.length + at)) / (span - 1)).toFixed(1)},${most > 0 ? (39 - 38 * (last / most)).toFixed(1) : 39}`;
  }).join(" "));
  below.textContent = known.length ? `at most ${show(most)} in ${duration(points.length * 2)}` : "nothing measured yet";
  return figure;
}

// What a part of the disk is drawn as: what is least safe or quickest wins, as the legend has it.
function kindOf(map, n) {
  if (map.dirty_bytes[n] > 0) return "dirty";
  if (map.stored_bytes[n] === 0) return "absent";
  const whole = Math.min(map.cell_bytes, map.size_bytes - n * map.cell_bytes);
  if (map.cached_bytes[n] * 2 > whole) return "cached";
  return map.stored_bytes[n] * 2 > whole ? "stored" : "part";
}

function draw(map) {
  const canvas = byId("map").querySelector("canvas");
  const cells = map.stored_bytes.length;
  canvas.width = Math.min(COLUMNS, cells);
  canvas.height = Math.ceil(cells / canvas.width);
  const pen = canvas.getContext("2d");
  // The colours of the legend itself.
  const colours = new Map([...document.querySelectorAll(".legend i")].map((of) => [of.className, getComputedStyle(of).backgroundColor]));
  map.stored_bytes.forEach((_, n) => {
    pen.fillStyle = colours.get(kindOf(map, n));
    pen.fillRect(n % canvas.width, Math.floor(n / canvas.width), 1, 1);
  });
  const sum = (list) => list.reduce((a, b) => a + b, 0);
  byId("sums").textContent = `${bytes(sum(map.stored_bytes))} stored, ${bytes(sum(map.cached_bytes))} of that in memory, `
    + `${bytes(sum(map.dirty_bytes))} not durable; a square is ${bytes(map.cell_bytes)}`;
}

async function refreshMap(name) {
  if (performance.now() - shown.mapAt < MAP_EVERY_MS) return;
  shown.mapAt = performance.now();
  try {
    const map = await ask("GET", pathOf(name, `/map?cells=${CELLS}`));
    if (shown.name === name) draw(map);
  } catch (error) {
    if (shown.name === name) byId("sums").textContent = `The map cannot be read now: ${error.message}`;
  }
}

function facts(volume, countedAt) {
  const { open } = volume;
  const when = (text) => (text ? new Date(text).toLocaleString() : "–");
  const list = [["Size", bytes(volume.size_bytes)], ["Objects in the store", volume.stored_bytes === null ? "not counted yet"
    : `${bytes(volume.stored_bytes)} as of ${new Date(countedAt).toLocaleTimeString()}`],
    ["Chunk", bytes(volume.chunk_bytes)], ["Created", when(volume.created_at)], ["Id", volume.id]];
  if (open) {
    const asked = open.totals.cache_hits + open.totals.cache_misses;
    list.push(
      ["Hit ratio of the cache", asked ? `${((100 * open.totals.cache_hits) / asked).toFixed(1)} % of ${asked} pages` : "nothing read from the store yet"],
      ["In the cache", bytes(open.cached_bytes)],
      ["Lease", open.lease_seconds === null ? "none" : `${Math.round(open.lease_seconds)} s left, epoch ${volume.epoch}`],
      ["Held by", volume.holder ?? "–"],
      ["Journal", `${bytes(open.journal_bytes)} in ${open.journal_records} records`],
      ["Data", `${bytes(open.live_bytes)} live, ${bytes(open.garbage_bytes)} to be freed`],
      ["In packs", `${bytes(open.overlaid_bytes)} in ${open.packs} packs`],
      ["Last checkpoint", open.checkpoint_at ? when(open.checkpoint_at) : "none since the opening"],
      ["Commits in flight", String(open.commits_in_flight)],
      ["Writes waited at a bound", duration(open.totals.throttled_seconds)],
    );
    if (open.flatten_remaining_bytes > 0) list.push(["Being made independent", `at most ${bytes(open.flatten_remaining_bytes)} left`]);
  } else {
    list.push(["Last epoch", String(volume.epoch)], ["Last held by", volume.holder ?? "nobody"]);
  }
  if (volume.clone_of) list.push(["Clone of", volume.clone_of]);
  byId("facts").replaceChildren(...list.map(([what, value]) => {
    const group = element("div");
    group.append(element("dt", what), element("dd", value));
    return group;
  }));
}

const pathOfSnapshot = (name, snapshot) => pathOf(name, `/snapshots/${encodeURIComponent(snapshot)}`);

// Does something to the snapshots of the volume, which are then asked for again.
async function changeSnapshots(method, path, body) {
  await ask(method, path, body);
  shown.snapshotsAt = -Infinity;
}

function drawSnapshots(name, snapshots) {
  byId("untaken").textContent = snapshots.length ? "" : "There is none.";
  byId("taken").replaceChildren(...[...snapshots].reverse().map((snapshot) => {
    const row = element("tr");
    row.dataset.snapshot = snapshot.name;
    const gone = Object.assign(element("button", "Delete…"), { type: "button", ariaLabel: `Delete snapshot ${snapshot.name}` });
    gone.addEventListener("click", () => act(`Delete the snapshot ${snapshot.name} of ${name} for ever`,
      "What only it needs is deleted from the store. This cannot be undone.", "Delete", [["Type its name", snapshot.name]],
      () => changeSnapshots("DELETE", pathOfSnapshot(name, snapshot.name))));
    const last = element("td");
    last.append(gone);
    row.append(element("td", snapshot.name), element("td", new Date(snapshot.taken_at).toLocaleString()),
      element("td", `${name}@${snapshot.name}`, "wide"), last);
    return row;
  }));
}

// The gateway has the snapshots of an open volume in memory. It asks the store for those of another one: then only once.
async function refreshSnapshots(name, isOpen) {
  if (performance.now() - shown.snapshotsAt < (isOpen ? SNAPSHOTS_EVERY_MS : Infinity)) return;
  shown.snapshotsAt = performance.now();
  try {
    const snapshots = await ask("GET", pathOf(name, "/snapshots"));
    if (shown.name === name) drawSnapshots(name, snapshots);
  } catch (error) {
    if (shown.name === name) byId("untaken").textContent = `They cannot be read now: ${error.message}`;
  }
}

const quoted = (text) => (/^[\w@%+=:,./?-]+$/.test(text) && !text.includes("?") ? text : `'${text.replaceAll("'", "'\\''")}'`);

function commands(name, templates) {
  const key = JSON.stringify([name, templates]);
  if (shown.commands === key) return;
  shown.commands = key;
  // Clients connect to an address, not to all of them.
  const uris = templates.map((of) => of.replace("{name}", name).replace(/\/\/(0\.0\.0\.0|\[::\])(?=[:/])/, `//${location.hostname}`));
  const lines = uris.flatMap((uri) => [`nbdinfo ${quoted(uri)}`, `nbdcopy disk.img ${quoted(uri)}`,
    ...(uri.startsWith("nbd:") || uri.startsWith("nbd+unix:")
      ? [`qemu-system-x86_64 -drive ${quoted(`file=${uri.replaceAll(",", ",,")},format=raw,if=virtio,cache=writeback,discard=unmap`)}`] : [])]);
  byId("commands").querySelector("ul").replaceChildren(...lines.map((text) => {
    const item = element("li");
    const code = element("code", text);
    const copy = Object.assign(element("button", "Copy"), { type: "button", ariaLabel: `Copy ${text}` });
    copy.addEventListener("click", async () => {
      // Without a secure origin there is no clipboard: then it is selected, to be copied by hand.
      getSelection().selectAllChildren(code);
      try { await navigator.clipboard.writeText(text); copy.textContent = "Copied"; } catch { copy.textContent = "Selected"; }
    });
    item.append(code, copy);
    return item;
  }));
}

// Shows a volume; `volume` is undefined if there is none of that name, `points` are those of its lines.
export function showVolume(name, volume, points, page) {
  if (shown.name !== name) {
    shown = { name, mapAt: -Infinity, snapshotsAt: -Infinity };
    byId("sums").textContent = "";
    byId("taken").replaceChildren();
    byId("untaken").textContent = "";
    const canvas = byId("map").querySelector("canvas");
    canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  }
  byId("name").textContent = name;
  const state = volume ? stateOf(volume) : { text: "There is no volume of that name.", kind: "bad" };
  byId("state").textContent = volume && !volume.open && !volume.problem
    ? `This volume is ${state.text}. It is opened for its first client; its map is shown while it is open here.` : state.text;
  byId("state").className = state.kind;
  const { open } = volume ?? {};
  const serves = open && open.state !== "stopped";
  for (const id of ["lines", "users"]) byId(id).hidden = !open;
  byId("map").hidden = !serves;
  for (const id of ["facts", "snapshots"]) byId(id).hidden = !volume || Boolean(volume.problem);
  byId("snapshot").disabled = !volume || Boolean(volume.problem);
  byId("commands").hidden = !volume || Boolean(volume.problem) || page.status.connect.length === 0;
  for (const id of ["flush", "checkpoint"]) byId(id).disabled = !serves;
  byId("delete").disabled = !volume || Boolean(serves);
  byId("delete").title = serves ? "A volume that is open here is not deleted: disconnect its clients first." : "";
  if (!volume || volume.problem) return;
  facts(volume, page.status.counted_at);
  commands(name, page.status.connect);
  refreshSnapshots(name, serves);
  if (!open) return;
  byId("lines").replaceChildren(...LINES.map((of) => line(of, points)));
  byId("connections").replaceChildren(...page.connections.filter((of) => of.export === name).map((of) => {
    const row = element("tr");
    row.append(element("td", String(of.id)), element("td", of.peer));
    return row;
  }));
  if (serves) refreshMap(name);
}

byId("flush").addEventListener("click", () => act(`Flush ${shown.name}`, "What was written becomes durable; clients are not held up.",
  "Flush", [], () => ask("POST", pathOf(shown.name, "/flush"))));
byId("checkpoint").addEventListener("click", () => act(`Make a checkpoint of ${shown.name}`,
  "The journal is folded into chunks, which costs some requests to the store. Clients are not held up.",
  "Checkpoint", [], () => ask("POST", pathOf(shown.name, "/checkpoint"))));
byId("snapshot").addEventListener("click", () => act(`Take a snapshot of ${shown.name}`,
  "It keeps what was written until now. Clients are not held up.", "Take it", [["Name of the snapshot", null]],
  ([name]) => changeSnapshots("POST", pathOf(shown.name, "/snapshots"), { name })));
byId("delete").addEventListener("click", () => act(`Delete ${shown.name}`,
  "Its name is free at once. cairn volume undelete brings it back while it is kept (volumes.undelete).", "Delete", [["Type its name", shown.name]],
  () => ask("DELETE", pathOf(shown.name))));
