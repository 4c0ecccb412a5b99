// The table of volumes, and what an operator can have done. Asks for what the gateway has in memory, every two seconds.
// Text reaches the page as text only, never as markup.
import { showVolume } from "./volume.js";

const EVERY_MS = 2000;
const PATIENCE_MS = 8000;
const KEPT = 150; // points of a line: five minutes
const TROUBLE_SECONDS = 5;
const byId = (id) => document.getElementById(id);

// What is known: the last answer, and by name of a volume the totals of the one before and the points of its lines.
const page = { status: null, connections: [], at: 0, error: null, token: sessionStorage.getItem("token"), sort: "name", down: false };
const histories = new Map();
let looking = null; // the timer of the next update
let closed = Promise.resolve(); // settled when no dialog is open
let signingIn = null; // the dialog that asks for the token, while it is open
let isDeclined = false; // whether that dialog was cancelled for a request that only reads

export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) { count /= 1024; unit += 1; }
  return `${unit === 0 || count >= 100 ? Math.round(count) : count.toFixed(1)} ${units[unit]}`;
}

export function duration(seconds) {
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${(seconds * 1000).toFixed(seconds < 0.1 ? 1 : 0)} ms`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

export function element(kind, text, name) {
  const made = document.createElement(kind);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
}

export async function ask(method, path, body) {
  const { token } = page;
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  const patience = method === "GET" ? { signal: AbortSignal.timeout(PATIENCE_MS) } : {};
  const answer = await fetch(path, { method, headers, cache: "no-store", body: body && JSON.stringify(body), ...patience });
  if (answer.ok) return answer.status === 200 || answer.status === 201 ? answer.json() : null;
  const said = await answer.json().catch(() => ({ error: answer.statusText }));
  if (answer.status === 401) {
    // Another request may have asked for the token meanwhile.
    if (page.token === token) await signInFor(method, said.error);
    return ask(method, path, body);
  }
  throw Object.assign(new Error(said.error), { status: answer.status });
}

export const pathOf = (name, what = "") => `api/v1/volumes/${encodeURIComponent(name)}${what}`;

// Opens the dialog, once the one before is closed; gives what was typed, or null if it was left. `fields` are [label, what
// must be typed or null, kind].
function confirm(...of) {
  const typed = closed.then(() => openDialog(...of));
  closed = typed;
  return typed;
}

function openDialog(question, consequence, verb, fields = []) {
  const dialog = byId("dialog");
  byId("question").textContent = question;
  byId("consequence").textContent = consequence;
  byId("yes").textContent = verb;
  const inputs = fields.map(([text, expected, kind = "text"]) => {
    const label = element("label", `${text} `);
    const input = Object.assign(element("input"), { type: kind, autocomplete: "off", spellcheck: false });
    label.append(input);
    return { label, input, expected };
  });
  byId("fields").replaceChildren(...inputs.map(({ label }) => label));
  const isFilled = () => inputs.every(({ input, expected }) => (expected === null ? input.value !== "" : input.value === expected));
  byId("yes").disabled = !isFilled();
  return new Promise((resolve) => {
    let typed = null;
    const take = () => { if (isFilled()) { typed = inputs.map(({ input }) => input.value); dialog.close(); } };
    const over = new AbortController();
    const on = (id, event, does) => byId(id).addEventListener(event, does, { signal: over.signal });
    on("fields", "input", () => { byId("yes").disabled = !isFilled(); });
    on("fields", "keydown", (event) => { if (event.key === "Enter") take(); });
    on("yes", "click", take);
    on("no", "click", () => dialog.close());
    on("dialog", "close", () => { over.abort(); resolve(typed); });
    dialog.showModal();
    (inputs[0]?.input ?? byId("no")).focus();
  });
}

const refused = (why) => Object.assign(new Error(why), { status: 401 });

// After a cancelled dialog, no request that only reads opens it again: the page sends these on its own.
async function signInFor(method, why) {
  const reads = method === "GET";
  if (reads && isDeclined) throw refused(why);
  try { await signIn(why); } catch (error) { isDeclined ||= reads; throw error; }
}

// Requests that are refused at the same time share one dialog.
function signIn(why) {
  signingIn ??= askForToken(why).finally(() => { signingIn = null; });
  return signingIn;
}

async function askForToken(why) {
  const typed = await confirm("The gateway asks for its token", why, "Use it", [["Token", null, "password"]]);
  if (!typed) throw refused(why);
  [page.token] = typed;
  isDeclined = false;
  sessionStorage.setItem("token", page.token);
}

// Asks first, then has it done, and says how that went.
export async function act(question, consequence, verb, fields, work) {
  const typed = await confirm(question, consequence, verb, fields);
  if (!typed) return;
  say(`${verb}: under way…`);
  try {
    await work(typed);
    say(`${verb}: done.`);
  } catch (error) {
    say(`${verb}: ${error.message}`, true);
  }
  look();
}

function say(text, isBad = false) {
  const said = byId("said");
  said.hidden = false;
  said.textContent = text;
  said.classList.toggle("bad", isBad);
}

// The size in bytes of a text such as 10GiB.
function size(text) {
  const found = /^\s*(\d+)\s*(B|KiB|MiB|GiB|TiB|PiB)\s*$/.exec(text);
  if (!found) throw new Error("a size is a whole number with B, KiB, MiB, GiB, TiB or PiB");
  return Number(found[1]) * 1024 ** ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].indexOf(found[2]);
}

// What was done in each second between two looks.
function note(volume, now) {
  const { open } = volume;
  const known = histories.get(volume.name);
  if (!open) { histories.delete(volume.name); return; }
  const points = known?.points ?? [];
  const before = known && known.totals.writes <= open.totals.writes && known.totals.reads <= open.totals.reads ? known.totals : null;
  if (before) {
    const seconds = (now - known.at) / 1000;
    const rate = (of) => (open.totals[of] - before[of]) / seconds;
    const mean = (sum, count) => (open.totals[count] > before[count]
      ? (open.totals[sum] - before[sum]) / (open.totals[count] - before[count]) : null);
    points.push({
      read: rate("read_bytes"), write: rate("write_bytes"), reads: rate("reads"), writes: rate("writes"),
      flush: mean("flush_seconds", "flushes"), dirty: open.uncommitted_bytes,
    });
    if (points.length > KEPT) points.shift();
  }
  histories.set(volume.name, { totals: open.totals, at: now, points });
}

export function stateOf(volume) {
  const { open } = volume;
  if (volume.problem) return { text: volume.problem, kind: "bad" };
  if (!open) return { text: volume.holder ? `closed here, last held by ${volume.holder}` : "closed", kind: "" };
  if (open.reason) return { text: `${open.state}: ${open.reason}`, kind: "bad" };
  return { text: open.state, kind: open.state === "serving" ? "good" : "" };
}

// A line of the table: what is shown, and by what it is sorted.
function row(volume) {
  const last = histories.get(volume.name)?.points.at(-1);
  const { open } = volume;
  const number = (value, show) => (value === null || value === undefined ? [-1, "–"] : [value, show(value)]);
  const pace = (bytesIn, count) => (bytesIn > 0 || count > 0 ? `${bytes(bytesIn)}/s` : "0");
  const dirty = (open) => (open.uncommitted_bytes > 0
    ? `${bytes(open.uncommitted_bytes)}, ${duration(open.uncommitted_seconds)}` : "0");
  return {
    size: number(volume.size_bytes, bytes), stored: number(volume.stored_bytes, bytes), clients: number(open?.clients, String),
    read: number(open && last?.read, (rate) => pace(rate, last.reads)),
    write: number(open && last?.write, (rate) => pace(rate, last.writes)),
    flush: number(open && last?.flush, duration), dirty: open ? [open.uncommitted_bytes, dirty(open)] : [-1, "–"],
    state: stateOf(volume),
  };
}

const NUMBERS = ["size", "stored", "clients", "read", "write", "flush", "dirty"];

function showTable() {
  const wanted = byId("search").value.trim().toLowerCase();
  const lines = page.status.volumes.map((volume) => ({ volume, of: row(volume) }));
  const found = lines.filter(({ volume, of }) => `${volume.name} ${of.state.text}`.toLowerCase().includes(wanted));
  const key = ({ volume, of }) => (page.sort === "name" ? volume.name : page.sort === "state" ? of.state.text : of[page.sort][0]);
  const order = (a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0);
  found.sort((a, b) => (page.down ? order(b, a) : order(a, b)));
  const focused = document.activeElement?.closest?.("#volumes a")?.textContent;
  byId("volumes").replaceChildren(...found.map(({ volume, of }) => {
    const line = element("tr", undefined, volume.open ? "" : "closed");
    line.dataset.volume = volume.name;
    const name = element("td");
    const link = Object.assign(element("a", volume.name), { href: `#/volume/${encodeURIComponent(volume.name)}` });
    name.append(link);
    line.append(name);
    for (const of_ of NUMBERS) {
      const cell = element("td", of[of_][1], `number${["write", "dirty"].includes(of_) ? "" : " wide"}`);
      cell.dataset.of = of_;
      line.append(cell);
    }
    const state = element("td", of.state.text, of.state.kind);
    state.dataset.of = "state";
    line.append(state);
    return line;
  }));
  if (focused) [...document.querySelectorAll("#volumes a")].find((link) => link.textContent === focused)?.focus();
  byId("nothing").hidden = found.length > 0;
  byId("nothing").textContent = lines.length ? "No volume is found." : "There is no volume yet.";
  for (const button of document.querySelectorAll("#list th button")) {
    button.parentElement.ariaSort = button.dataset.key !== page.sort ? "none" : page.down ? "descending" : "ascending";
  }
}

const count = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;

function trouble() {
  const { status, error } = page;
  if (error) return status ? `${error}. What is shown is ${duration((performance.now() - page.at) / 1000)} old.` : error;
  if (status.store_failing_seconds >= TROUBLE_SECONDS) {
    return `The store has answered nothing for ${duration(status.store_failing_seconds)}. Writes wait in memory, FLUSH waits; `
      + "nothing is lost while the gateway runs.";
  }
  return status.state === "serving" ? null : `The gateway is ${status.state}.`;
}

function show() {
  const { status } = page;
  const what = trouble();
  byId("trouble").hidden = !what;
  byId("trouble").textContent = what ?? "";
  byId("sign-in").hidden = !isDeclined;
  document.body.classList.toggle("stale", Boolean(page.error));
  if (!status) {
    byId("summary").textContent = isDeclined ? "Not signed in" : "Asking the gateway…";
    return;
  }
  const open = status.volumes.filter((volume) => volume.open);
  byId("version").textContent = status.version;
  byId("summary").textContent = `${count(status.volumes.length, "volume")}, ${open.length} open, `
    + `${count(page.connections.length, "connection")}, ${bytes(open.reduce((sum, of) => sum + of.open.uncommitted_bytes, 0))}`
    + ` of ${bytes(status.limits.dirty_bytes)} not durable`;
  byId("counted").textContent = status.counted_at
    ? `Closed volumes and stored bytes as of ${new Date(status.counted_at).toLocaleString()}`
    : "The store is still to be read for closed volumes and stored bytes.";
  const name = decodeURIComponent(/^#\/volume\/(.+)$/.exec(location.hash)?.[1] ?? "");
  byId("list").hidden = Boolean(name);
  byId("volume").hidden = !name;
  document.title = name ? `${name} – Cairn` : "Cairn";
  if (!name) { showTable(); return; }
  const volume = status.volumes.find((of) => of.name === name);
  showVolume(name, volume, histories.get(name)?.points ?? [], page);
}

async function look() {
  clearTimeout(looking);
  // The next request is sent when somebody asks for it.
  if (isDeclined) { show(); return; }
  try {
    const [status, connections] = await Promise.all([ask("GET", "api/v1/status"), ask("GET", "api/v1/connections")]);
    const now = performance.now();
    status.volumes.forEach((volume) => note(volume, now));
    Object.assign(page, { status, connections, at: now, error: null });
  } catch (error) {
    page.error = error.status ? error.message : "The gateway does not answer";
  }
  show();
  clearTimeout(looking);
  if (!isDeclined) looking = setTimeout(look, EVERY_MS);
}

byId("search").addEventListener("input", () => page.status && showTable());
for (const button of document.querySelectorAll("#list th button")) {
  button.addEventListener("click", () => {
    const { key } = button.dataset;
    // Of numbers, the largest come first.
    page.down = page.sort === key ? !page.down : NUMBERS.includes(key);
    page.sort = key;
    if (page.status) showTable();
  });
}
addEventListener("hashchange", () => { byId("said").hidden = true; show(); });
addEventListener("keydown", (event) => {
  if (event.key === "/" && !byId("dialog").open && event.target.tagName !== "INPUT") {
    event.preventDefault();
    byId("search").focus();
  }
});
byId("create").addEventListener("click", () => act("Make a volume", "It takes room in the store only for what is written.",
  "Make it", [["Name", null], ["Size, such as 10GiB", null]],
  ([name, text]) => ask("POST", "api/v1/volumes", { name, size_bytes: size(text) })));
byId("sign-in").addEventListener("click", () => { isDeclined = false; look(); });
byId("drain").addEventListener("click", () => act("Drain this gateway",
  "It answers what is in flight, closes every volume and ends. Its clients lose their disks unless another gateway takes over.",
  "Drain", [["Type drain", "drain"]], () => ask("POST", "api/v1/drain")));
byId("refresh").addEventListener("click", async () => {
  say("Asking the store…");
  try {
    const volumes = await ask("GET", "api/v1/volumes");
    // As the gateway will know them after its next count.
    const open = new Set(page.status.volumes.filter((volume) => volume.open).map((volume) => volume.name));
    page.status.volumes = [...page.status.volumes.filter((volume) => volume.open), ...volumes.filter((volume) => !open.has(volume.name))];
    say(`The store has ${count(volumes.length, "volume")}.`);
    show();
  } catch (error) {
    say(`Asking the store: ${error.message}`, true);
  }
});
look();
