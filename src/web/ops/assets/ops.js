// The dashboard in the browser: ticks for what refreshes itself, times, keys, dialogs, charts. Pages work without it.
"use strict";

const byId = (id) => document.getElementById(id);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const kept = {
  get: (name, otherwise) => { try { return localStorage.getItem("turnmill." + name) ?? otherwise; } catch { return otherwise; } },
  set: (name, value) => { try { localStorage.setItem("turnmill." + name, value); } catch { /* private windows have none */ } },
};

// ── Refreshing: while the page is seen, nobody is choosing, and the server answers ──

const pace = { seconds: 2, slow: 0, failures: 0, good: Date.now(), timer: 0 };

function busy() {
  return document.hidden || pace.seconds === 0 || document.querySelector("dialog[open]") || document.querySelector("input[name=pick]:checked")
    || (document.activeElement && document.activeElement.matches("main select, main input:not([type=checkbox])") && document.activeElement.closest("[hx-trigger]"));
}

function tick() {
  clearTimeout(pace.timer);
  // Further and further apart while the server does not answer.
  const wait = Math.min(pace.seconds * 1000 * 2 ** Math.min(pace.failures, 4), 30000) || 1000;
  pace.timer = setTimeout(tick, wait);
  stale();
  if (busy()) return;
  htmx.trigger(document.body, "tick");
  pace.slow += pace.seconds;
  if (pace.slow >= 15) { pace.slow = 0; htmx.trigger(document.body, "slowtick"); }
}

function stale() {
  const banner = byId("stale");
  if (!banner || !document.querySelector('[hx-trigger~="tick"]')) return;
  const age = Date.now() - pace.good;
  const late = pace.seconds > 0 && !document.hidden && age > Math.max(pace.seconds * 3, 6) * 1000;
  banner.hidden = !late;
  if (late) banner.textContent = `The server has not answered for ${Math.round(age / 1000)} s. Shown is what was there before; it is asked again.`;
}

function asOf(root) {
  const mark = (root.matches?.("[data-as-of]") ? root : root.querySelector?.("[data-as-of]")) ?? document.querySelector("[data-as-of]");
  const shown = byId("as-of");
  if (!mark || !shown) return;
  shown.hidden = false;
  shown.querySelector("b").textContent = clock(new Date(mark.dataset.asOf), kept.get("times", "ago") === "utc");
}

document.addEventListener("htmx:afterRequest", (event) => {
  const { successful, requestConfig } = event.detail;
  if (!["tick", "slowtick"].includes(requestConfig?.triggeringEvent?.type)) return;
  if (successful) { pace.failures = 0; pace.good = Date.now(); } else { pace.failures += 1; }
  stale();
});
document.addEventListener("htmx:afterSwap", () => { dress(document); });

// What a reader has opened, where he is, and a time that has not changed stay as they are when a part is patched.
Idiomorph.defaults.callbacks.beforeAttributeUpdated = (name, node) =>
  !((name === "open" && node.matches("details")) || (name === "tabindex" && node.matches(".cell")) || (name === "disabled" && node.matches(".bulk button")));
Idiomorph.defaults.callbacks.beforeNodeMorphed = (old, fresh) =>
  !(old.nodeName === "TIME" && fresh.nodeName === "TIME" && old.dateTime === fresh.dateTime) && old.id !== "picked";
document.addEventListener("visibilitychange", () => { if (!document.hidden) { pace.good = Date.now(); tick(); } });

// ── Times: how long ago, on this machine's clock, or in UTC; the whole is in the title ──

const two = (n) => String(n).padStart(2, "0");
function clock(at, utc) {
  return utc ? `${two(at.getUTCHours())}:${two(at.getUTCMinutes())}:${two(at.getUTCSeconds())}` : `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
}
function ago(seconds) {
  if (seconds < 0) return "in " + ago(-seconds).replace(" ago", "");
  if (seconds < 100) return `${Math.round(seconds)} s ago`;
  if (seconds < 6000) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} d ago`;
}
function times(root) {
  const how = kept.get("times", "ago");
  for (const time of all("time[datetime]", root)) {
    const at = new Date(time.dateTime);
    const day = (utc) => (Date.now() - at > 72e6 ? (utc ? at.toISOString().slice(0, 10) : `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`) + " " : "");
    const text = how === "ago" && !("clock" in time.dataset) ? ago((Date.now() - at) / 1000) : day(how === "utc") + clock(at, how === "utc") + (how === "utc" ? " UTC" : "");
    if (time.textContent !== text) time.textContent = text;
  }
}

// ── Charts: drawn from the table beside them ──

const drawn = new Map();
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const LINES = {
  running: ["Running", "--c-agent"], ready: ["Could start", "--waiting"], waiting: ["Behind session", "--cancelled"], held: ["Slots held", "--c-finish"],
  enqueued: ["Enqueued", "--cancelled"], started: ["Started", "--c-agent"], completed: ["Completed", "--completed"], failed: ["Failed", "--failed"],
  wait_p95: ["Wait p95", "--waiting"], sandbox_usd: ["Sandboxes", "--c-warm"], model_usd: ["Models", "--c-agent"],
};

function columns(table, names) {
  const heads = all("thead th", table);
  const at = names.map((name) => heads.findIndex((head) => head.dataset.s === name));
  const data = [[], ...names.map(() => [])];
  for (const row of all("tbody tr", table)) {
    data[0].push(Number(row.cells[0].dataset.x));
    at.forEach((column, nth) => { const text = row.cells[column].textContent; data[nth + 1].push(text === "" ? null : Number(text)); });
  }
  return data;
}

// Lines over minutes.
function lines(names, axis) {
  const series = names.map((name, nth) => ({ label: LINES[name][0], stroke: colour(LINES[name][1]), width: 1.75, points: { show: false }, dash: nth === 3 ? [4, 3] : undefined }));
  return {
    series: [{ label: "", value: "{HH}:{mm}" }, ...series], axes: [{ ...axis, values: [[60, "{HH}:{mm}", null, null, null, null, null, null, 1]], space: 60 }, { ...axis, size: 44 }],
    scales: { y: { range: (_, low, high) => [0, Math.max(high * 1.1, 1)] } },
  };
}

// Bars over UTC days, one upon the other: each is drawn from the ground, the highest first.
const dollars = (value) => (value == null ? "–" : "$" + value.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: value < 1 ? 4 : 2 }));
function stacked(data) {
  const sums = data[0].map(() => 0);
  return [data[0], ...data.slice(1).reverse().map((values) => values.map((value, at) => (sums[at] += value ?? 0))).reverse()];
}
function days(names, axis) {
  const series = names.map((name, nth) => ({
    label: LINES[name][0], fill: colour(LINES[name][1]), stroke: colour(LINES[name][1]), width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.7, 60] }),
    value: (chart, value, _, at) => dollars(at == null || value == null ? null : value - (chart.data[nth + 2]?.[at] ?? 0)),
  }));
  return {
    series: [{ label: "Day", value: "{YYYY}-{MM}-{DD}" }, ...series], tzDate: (at) => uPlot.tzDate(new Date(at * 1e3), "Etc/UTC"),
    axes: [{ ...axis, values: [[86400, "{MM}-{DD}", null, null, null, null, null, null, 1]], space: 60, incrs: [1, 2, 3, 5, 7, 14, 28].map((n) => n * 86400), grid: { show: false } },
      { ...axis, size: 56, values: (_, at) => at.map((value) => "$" + value.toLocaleString("en")) }],
    scales: { x: { range: (_, low, high) => [low - 43200, high + 43200] }, y: { range: (_, low, high) => [0, high > 0 ? high * 1.1 : 1] } },
  };
}

function charts() {
  for (const place of all(".chart")) {
    const table = byId(place.dataset.of);
    if (!table) continue;
    const names = place.dataset.series.split(",");
    const daily = place.dataset.kind === "days";
    const data = daily ? stacked(columns(table, names)) : columns(table, names);
    const width = Math.max(place.clientWidth, 200);
    let chart = drawn.get(place);
    if (chart) { chart.setData(data); if (chart.width !== width) chart.setSize({ width, height: 180 }); continue; }
    const axis = { stroke: colour("--dim"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 }, font: "11px system-ui" };
    chart = new uPlot({ width, height: 180, ...(daily ? days : lines)(names, axis), cursor: { points: { size: 6 } }, legend: { live: true } }, data, place);
    drawn.set(place, chart);
  }
}
function redraw() { for (const chart of drawn.values()) chart.destroy(); drawn.clear(); charts(); }

// ── Dialogs: a link to a form that asks first is shown over the page ──

document.addEventListener("click", async (event) => {
  const link = event.target.closest("a[data-ask], [data-copy], [data-close]");
  if (!link) return;
  if (link.matches("[data-copy]")) {
    await navigator.clipboard?.writeText(link.parentElement.querySelector("pre").textContent);
    link.textContent = "Copied";
    return;
  }
  const dialog = byId("dialog");
  if (link.matches("[data-close]")) {
    if (dialog.open) { event.preventDefault(); dialog.close(); }
    return;
  }
  if (event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  link.setAttribute("aria-busy", "true");
  const answer = await fetch(link.href, { headers: { "HX-Request": "true" } }).catch(() => null);
  link.removeAttribute("aria-busy");
  // Whatever is wrong, the page itself says it better.
  if (!answer || answer.headers.get("HX-Redirect") || !answer.ok) { location.assign(link.href); return; }
  dialog.innerHTML = await answer.text();
  dialog.showModal();
});

// ── Keys ──

let chord = 0;
document.addEventListener("keydown", (event) => {
  if (event.metaKey || event.ctrlKey || event.altKey || document.querySelector("dialog[open]")) return;
  const typing = event.target.matches("input:not([type=checkbox]), textarea, select");
  if (typing) { if (event.key === "Escape") event.target.blur(); return; }
  if (Date.now() - chord < 1500) {
    chord = 0;
    const page = document.querySelector(`nav a[data-key="${CSS.escape(event.key)}"]`);
    if (page) { event.preventDefault(); page.click(); }
    return;
  }
  const act = {
    g: () => { chord = Date.now(); },
    "?": () => byId("keys").showModal(),
    "/": () => document.querySelector("[data-search]")?.focus(),
    p: () => { const picker = byId("pace"); picker.value = picker.value === "0" ? "2" : "0"; picker.dispatchEvent(new Event("change")); },
    d: setDensity,
    j: () => row(1), k: () => row(-1),
    x: () => { const box = document.activeElement.closest("tr")?.querySelector("input[name=pick]"); if (box) { box.click(); } },
    ArrowRight: () => cell(1, 0), ArrowLeft: () => cell(-1, 0), ArrowDown: () => cell(0, 1), ArrowUp: () => cell(0, -1),
  }[event.key];
  if (act && act() !== false) event.preventDefault();
});

function row(step) {
  const links = all("tbody tr a[data-row]");
  if (links.length === 0) return false;
  const now = links.indexOf(document.activeElement.closest("tr")?.querySelector("a[data-row]"));
  links[Math.min(Math.max(now + step, 0), links.length - 1)].focus();
}

function cell(across, down) {
  const here = document.activeElement;
  if (!here.matches("#board a, #board")) return false;
  const cells = all("#board a");
  const place = here.getBoundingClientRect();
  const next = down === 0 ? cells[cells.indexOf(here) + across]
    : cells.filter((c) => (c.getBoundingClientRect().top - place.top) * down > 4).sort((a, b) => near(a, place) - near(b, place))[0];
  if (next) { cells.forEach((c) => { c.tabIndex = -1; }); next.tabIndex = 0; next.focus(); }
}
function near(cell, place) {
  const there = cell.getBoundingClientRect();
  return Math.abs(there.top - place.top) * 1000 + Math.abs(there.left - place.left);
}

// ── Lists: filters that are chosen apply at once; how many are picked ──

document.addEventListener("change", (event) => {
  if (event.target.matches("[data-submit]")) event.target.form.requestSubmit();
  if (event.target.id === "pick-all") for (const box of all("input[name=pick]")) box.checked = event.target.checked;
  if (event.target.matches("#pick-all, input[name=pick]")) picked();
});
function picked() {
  const count = all("input[name=pick]:checked").length;
  const shown = byId("picked");
  if (shown) shown.textContent = count === 0 ? "" : `${count} picked; not refreshing`;
  for (const button of all(".bulk button")) button.disabled = count === 0;
}

// ── A transcript: what is new, put where it belongs; found, folded, replayed ──

const said = { box: null, found: [], at: -1, play: 0 };

// A result into its call; what a subagent says into the call that started it.
function nest(block) {
  const { answers, parent } = block.dataset;
  const name = answers ?? parent;
  if (!name) return;
  const call = said.box.querySelector(`.b[data-tool="${CSS.escape(name)}"]`);
  if (!call || call === block || block.contains(call)) return;
  let inside = call.querySelector(":scope > details > .nest");
  if (!inside) { inside = document.createElement("div"); inside.className = "nest"; call.querySelector(":scope > details")?.append(inside); }
  inside.append(block);
  if (answers && block.classList.contains("is-error")) call.classList.add("is-error");
}
function takeIn(root) { for (const block of all(".b", root)) nest(block); }

function atEnd() { return innerHeight + scrollY > document.body.scrollHeight - 120; }

async function listen() {
  const follow = byId("follow");
  let failures = 0;
  for (;;) {
    const pages = all(".page", said.box);
    const last = pages[pages.length - 1];
    if (!last || last.dataset.closed === "true") break;
    try {
      const answer = await fetch(`/ops/turns/${said.box.dataset.turn}/said?after=${last.dataset.last}&generation=${last.dataset.generation}`, { headers: { "HX-Request": "true" } });
      if (answer.headers.get("HX-Redirect")) { location.assign("/ops/enter"); return; }
      if (!answer.ok) throw new Error(answer.status);
      const part = document.createRange().createContextualFragment(await answer.text()).querySelector(".page");
      failures = 0;
      const fresh = all(".b", part).filter((block) => !byId(block.id));
      last.dataset.last = part.dataset.last;
      last.dataset.generation = part.dataset.generation;
      last.dataset.closed = part.dataset.closed;
      const stay = follow.checked;
      for (const child of [...part.children]) if (!child.matches(".b") || fresh.includes(child)) last.append(child);
      fresh.forEach(nest);
      replayable();
      byId("said-state").textContent = part.dataset.closed === "true" ? "That was all." : "";
      if (fresh.length > 0 && stay) scrollTo({ top: document.body.scrollHeight });
    } catch {
      failures += 1;
      byId("said-state").textContent = "The server does not answer; it is asked again.";
      await new Promise((go) => setTimeout(go, Math.min(500 * 2 ** failures, 15000)));
    }
    while (document.hidden) await new Promise((go) => document.addEventListener("visibilitychange", go, { once: true }));
  }
  if (document.querySelector("#turn[hx-get]")) { htmx.trigger(document.body, "tick"); }
}

function find(text) {
  for (const mark of all("mark", said.box)) mark.replaceWith(mark.textContent);
  said.box.normalize();
  said.found = []; said.at = -1;
  if (text.length > 1) {
    const walker = document.createTreeWalker(said.box, NodeFilter.SHOW_TEXT);
    const hits = [];
    const wanted = text.toLowerCase();
    while (walker.nextNode() && hits.length < 2000) {
      const where = walker.currentNode.data.toLowerCase().indexOf(wanted);
      if (where >= 0) hits.push([walker.currentNode, where]);
    }
    for (const [node, where] of hits) {
      const range = document.createRange();
      range.setStart(node, where); range.setEnd(node, Math.min(where + text.length, node.length));
      const mark = document.createElement("mark");
      range.surroundContents(mark);
      said.found.push(mark);
    }
  }
  byId("found").textContent = text.length > 1 ? `${said.found.length} found` : "";
  byId("find-next").hidden = said.found.length === 0;
}
function reveal(element) {
  for (let at = element; at && at !== said.box; at = at.parentElement) if (at.matches("details")) at.open = true;
  byId("follow").checked = false;
  element.scrollIntoView({ block: "center" });
}
function nextFound() {
  said.found[said.at]?.classList.remove("at");
  said.at = (said.at + 1) % said.found.length;
  said.found[said.at].classList.add("at");
  reveal(said.found[said.at]);
  byId("found").textContent = `${said.at + 1} of ${said.found.length}`;
}
function nextError() {
  const errors = all(".b.is-error", said.box).filter((block) => !block.querySelector(".b.is-error"));
  if (errors.length === 0) { byId("found").textContent = "no error in what is shown"; return; }
  const past = errors.find((block) => block.getBoundingClientRect().top > innerHeight / 2 + 20) ?? errors[0];
  reveal(past);
  past.querySelector("summary, a")?.focus({ preventScroll: true });
}

// Time in the turn: what came later is hidden.
function span() {
  const times = all(".b", said.box).map((block) => Date.parse(block.dataset.at));
  return [Math.min(...times), Math.max(...times)];
}
function replayable() { byId("replay").hidden = all(".b", said.box).length < 2; }
function scrub() {
  const share = byId("scrub").value / 1000;
  const [from, to] = span();
  const until = from + (to - from) * share;
  let shown = 0;
  for (const block of all(".b", said.box)) { const later = share < 1 && Date.parse(block.dataset.at) > until; block.classList.toggle("beyond", later); if (!later) shown += 1; }
  byId("scrubbed").textContent = share < 1 ? `+${((until - from) / 1000).toFixed(1)} s, ${shown} blocks` : "";
}
function play() {
  const scrubber = byId("scrub");
  if (said.play) { cancelAnimationFrame(said.play); said.play = 0; byId("play").textContent = "▶ Replay"; return; }
  const [from, to] = span();
  // As it was, and no more than half a minute.
  const whole = Math.min(Math.max(to - from, 1000), 30000);
  const begun = scrubber.value >= 1000 ? 0 : scrubber.value / 1000;
  byId("play").textContent = "‖ Pause";
  const since = performance.now();
  const step = (now) => {
    const share = Math.min(begun + (now - since) / whole, 1);
    scrubber.value = Math.round(share * 1000);
    scrub();
    if (share < 1) { said.play = requestAnimationFrame(step); } else { said.play = 0; byId("play").textContent = "▶ Replay"; }
  };
  said.play = requestAnimationFrame(step);
}

function transcript() {
  said.box = byId("said");
  if (!said.box || !said.box.dataset.turn) return;
  takeIn(said.box);
  replayable();
  const finder = byId("find");
  let typing = 0;
  finder.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(() => find(finder.value.trim()), 150); });
  finder.addEventListener("keydown", (event) => { if (event.key === "Enter" && said.found.length) { event.preventDefault(); nextFound(); } });
  byId("find-next").addEventListener("click", nextFound);
  byId("next-error").addEventListener("click", nextError);
  byId("fold").addEventListener("click", (event) => {
    const open = event.target.getAttribute("aria-pressed") !== "true";
    event.target.setAttribute("aria-pressed", open);
    event.target.textContent = open ? "Fold all" : "Unfold all";
    for (const fold of all("details", said.box)) fold.open = open;
  });
  byId("scrub").addEventListener("input", scrub);
  byId("play").addEventListener("click", play);
  // Whoever scrolls up wants to read; whoever comes back to the end wants to follow.
  addEventListener("wheel", (event) => { if (event.deltaY < 0) byId("follow").checked = false; else if (atEnd()) byId("follow").checked = true; }, { passive: true });
  document.addEventListener("htmx:afterSwap", (event) => {
    const asked = event.detail.requestConfig?.elt;
    if (!asked?.matches("[data-earlier]")) return;
    asked.remove();
    takeIn(said.box);
  });
  listen();
}

// ── All together ──

function dress(root) {
  times(root);
  asOf(root);
  charts();
  picked();
  const board = byId("board");
  if (board && !board.querySelector('[tabindex="0"]')) board.querySelector("a")?.setAttribute("tabindex", "0");
}

function setTheme() {
  const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const theme = dark ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  document.cookie = `turnmill_theme=${theme}; path=/ops; max-age=31536000; samesite=strict`;
  redraw();
}

function setDensity() {
  const root = document.documentElement, compact = root.dataset.density !== "compact";
  if (compact) root.dataset.density = "compact"; else delete root.dataset.density;
  byId("density").setAttribute("aria-pressed", compact);
  document.cookie = `turnmill_density=${compact ? "compact" : "comfortable"}; path=/ops; max-age=31536000; samesite=strict`;
}

function begin() {
  const picker = byId("pace"), how = byId("times");
  if (picker) {
    picker.value = kept.get("pace", "2");
    pace.seconds = Number(picker.value);
    picker.addEventListener("change", () => { pace.seconds = Number(picker.value); kept.set("pace", picker.value); pace.good = Date.now(); tick(); });
    how.value = kept.get("times", "ago");
    how.addEventListener("change", () => { kept.set("times", how.value); dress(document); });
    byId("density").addEventListener("click", setDensity);
    byId("theme").addEventListener("click", setTheme);
    byId("help").addEventListener("click", () => byId("keys").showModal());
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  let resizing = 0;
  addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(charts, 150); });
  // On a narrow screen the bar is wider than what is seen of it.
  document.querySelector("nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  dress(document);
  setInterval(() => { if (!document.hidden && pace.seconds > 0) times(document); }, 1000);
  pace.timer = setTimeout(tick, pace.seconds * 1000 || 1000);
}
begin();
picked();
transcript();
