"use strict";
// Shows what the API tells, every two seconds. Text reaches the page as text only, never as markup.

const EVERY_MS = 2000;
const COLUMNS = 128;
const byId = (id) => document.getElementById(id);
const cards = new Map(); // name of a volume: its card, and the totals of the last look
let token = sessionStorage.getItem("token");

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) { count /= 1024; unit += 1; }
  return `${unit === 0 || count >= 100 ? Math.round(count) : count.toFixed(1)} ${units[unit]}`;
}

function milliseconds(seconds) {
  const ms = seconds * 1000;
  return ms < 1 ? `${Math.round(ms * 1000)} µs` : ms < 100 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`;
}

async function ask(path) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { headers, cache: "no-store" });
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({ error: answer.statusText }));
    throw Object.assign(new Error(said.error), { status: answer.status });
  }
  return answer.json();
}

// A rate and the mean time of what was done since the last look.
function pace(now, before, count, sum, moved, elapsed) {
  const done = before ? now[count] - before[count] : 0;
  const parts = [];
  if (moved) parts.push(`${bytes(before ? (now[moved] - before[moved]) / elapsed : 0)}/s`);
  parts.push(`${before ? Math.round(done / elapsed) : 0} a second`);
  parts.push(done > 0 ? milliseconds((now[sum] - before[sum]) / done) : "–");
  return parts.join("\n");
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function draw(canvas, map) {
  const rows = Math.ceil(map.stored_bytes.length / COLUMNS);
  const columns = Math.min(COLUMNS, map.stored_bytes.length);
  const [width, height] = [canvas.width / columns, canvas.height / rows];
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, canvas.width, canvas.height);
  const [stored, cached, dirty] = [colour("--stored"), colour("--cached"), colour("--dirty")];
  map.stored_bytes.forEach((held, n) => {
    const [x, y] = [(n % columns) * width, Math.floor(n / columns) * height];
    const fill = (part, style) => {
      if (part === 0) return;
      // A little is made visible: it is there.
      pen.globalAlpha = Math.min(1, 0.3 + 0.7 * (part / map.cell_bytes));
      pen.fillStyle = style;
      pen.fillRect(x, y, Math.ceil(width), Math.ceil(height));
    };
    fill(held - map.cached_bytes[n], stored);
    fill(map.cached_bytes[n], cached);
    fill(map.dirty_bytes[n], dirty);
  });
  pen.globalAlpha = 1;
}

function card(name) {
  let known = cards.get(name);
  if (!known) {
    const article = byId("volume").content.cloneNode(true).querySelector("article");
    article.dataset.volume = name;
    article.querySelector("h2").textContent = name;
    byId("volumes").append(article);
    known = { article, totals: null, at: 0 };
    cards.set(name, known);
  }
  return known;
}

async function show(volume) {
  const known = card(volume.name);
  const { article } = known;
  const set = (what, text) => { article.querySelector(`[data-of=${what}]`).textContent = text; };
  const { open } = volume;
  const state = open ? open.state + (open.reason ? `: ${open.reason}` : "")
    : volume.holder ? `held by ${volume.holder}` : "not open";
  article.querySelector(".facts").textContent =
    volume.problem ?? `${bytes(volume.size_bytes)}, ${state}, epoch ${volume.epoch}`;
  article.querySelector("dl").hidden = !open;
  article.querySelector("canvas").hidden = !open;
  article.querySelector(".legend").hidden = !open;
  if (!open) { known.totals = null; return; }
  const now = performance.now();
  const elapsed = (now - known.at) / 1000;
  const { totals } = open;
  set("read", pace(totals, known.totals, "reads", "read_seconds", "read_bytes", elapsed));
  set("write", pace(totals, known.totals, "writes", "write_seconds", "write_bytes", elapsed));
  set("flush", pace(totals, known.totals, "flushes", "flush_seconds", null, elapsed));
  set("uncommitted", `${bytes(open.uncommitted_bytes)}\n${open.commits_in_flight} commits on their way`);
  set("journal", `${bytes(open.journal_bytes)}\n${open.journal_records} records\n${open.checkpoints} checkpoints`);
  set("clients", String(open.clients));
  known.totals = totals;
  known.at = now;
  if (open.state === "stopped") return;
  const map = await ask(`api/v1/volumes/${encodeURIComponent(volume.name)}/map?cells=1024`);
  draw(article.querySelector("canvas"), map);
  const sum = (list) => list.reduce((a, b) => a + b, 0);
  article.querySelector(".stored-total").textContent =
    `${bytes(sum(map.stored_bytes))} stored, ${bytes(sum(map.cached_bytes))} of that cached, ${bytes(sum(map.dirty_bytes))} dirty`;
}

function showConnections(connections) {
  byId("connections").replaceChildren(...connections.map((connection) => {
    const row = document.createElement("tr");
    for (const text of [connection.id, connection.peer, connection.export ?? "–"]) {
      const cell = document.createElement("td");
      cell.textContent = String(text);
      row.append(cell);
    }
    return row;
  }));
}

async function look() {
  const summary = byId("summary");
  try {
    const [volumes, connections] = await Promise.all([ask("api/v1/volumes"), ask("api/v1/connections")]);
    for (const [name, { article }] of cards) {
      if (!volumes.some((volume) => volume.name === name)) { article.remove(); cards.delete(name); }
    }
    await Promise.all(volumes.map(show));
    showConnections(connections);
    const count = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
    summary.textContent = `${count(volumes.length, "volume")}, ${count(connections.length, "connection")}`;
    summary.className = "";
    byId("sign-in").hidden = true;
  } catch (error) {
    summary.textContent = error.message || "The gateway does not answer";
    summary.className = "trouble";
    if (error.status === 401) byId("sign-in").hidden = false;
  }
  setTimeout(look, EVERY_MS);
}

byId("use-token").addEventListener("click", () => {
  token = byId("token").value;
  sessionStorage.setItem("token", token);
});
look();
