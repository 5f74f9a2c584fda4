// What turns look like. Whatever an agent or a user says goes in as text, never as HTML.

/** What has more lines or characters than this is folded, and shown when it is opened: browsers take seconds for a huge text. */
const RESULT = { lines: 8, characters: 800 };
const MESSAGE = { lines: 20, characters: 2000 };
const TEXT = { lines: 2000, characters: 20000 };

/** Files of one turn that are listed. */
const FILES_MAX = 100;

const ENDED = ["completed", "failed", "cancelled"];

const WAITS = {
  session_busy: "waits for the message before it",
  no_slot: "waits for a free sandbox",
  create_rate: "waits: sandboxes are made only so fast",
  budget: "waits: the budget of this day is spent",
  fleet_stopped: "waits: the fleet is stopped",
  tenant_limit: "waits: no more of this tenant's may run at once",
  backoff: "waits for the next try",
  pool_paused: "waits: its pool is paused",
  pool_blocked: "waits: the sandboxes' provider refuses us",
  no_worker: "waits: no worker is running",
};

/** An element with children; texts among them stay texts. */
function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function words(value) {
  if (typeof value === "string") return value;
  return value === undefined || value === null ? "" : JSON.stringify(value);
}

/** A text as it is, or folded if it is long. */
function folded(text, most, what) {
  const lines = text.split("\n").length;
  if (lines <= most.lines && text.length <= most.characters) return text;
  const whole = element("pre", "", text);
  // It scrolls, so the keyboard must be able to get there.
  whole.tabIndex = 0;
  whole.setAttribute("role", "region");
  whole.setAttribute("aria-label", what);
  const size = lines > 1 ? lines + " lines" : text.length + " characters";
  return element("details", "", element("summary", "", what + ", " + size), whole);
}

/** One block: thinking, content, tool_use or tool_result. */
function shape({ type, content }) {
  if (type === "thinking") return element("div", "block thinking", folded(words(content.text), TEXT, "thinking"));
  if (type === "tool_use") {
    const parameters = folded(words(content.parameters), TEXT, "parameters");
    const shown = typeof parameters === "string" ? element("bdi", "parameters", parameters) : parameters;
    return element("div", "block tool", element("bdi", "name", words(content.tool_name)), " ", shown);
  }
  if (type === "tool_result") {
    const failed = content.error !== null && content.error !== undefined;
    const text = folded(words(failed ? content.error : content.result), RESULT, failed ? "error" : "result");
    return element("div", failed ? "block result failed" : "block result", typeof text === "string" ? element("pre", "", text) : text);
  }
  if (content.kind === "unknown") return element("div", "block thinking", folded(words(content.block), TEXT, "unknown"));
  const known = ["error", "warning", "context_lost"].includes(content.kind) ? content.kind : "content";
  return element("div", "block " + known, folded(words(content.text), TEXT, "text"));
}

function fileLine(turnId, { path, change, kept }) {
  const name = element(kept && change !== "deleted" ? "a" : "bdi", "", path);
  if (name.tagName === "A") {
    name.href = "/v1/turns/" + encodeURIComponent(turnId) + "/artifacts/content?path=" + encodeURIComponent(path);
    name.download = path.split("/").pop();
  }
  return element("li", "", element("span", "change", change), name);
}

/** How a turn is, in words; none when it is completed. */
function statusWords({ status, wait_reason, error, attempt }) {
  const why = error ? ": " + error.code : "";
  if (status === "pending") return (Object.hasOwn(WAITS, wait_reason ?? "") ? WAITS[wait_reason] : "begins") + (attempt > 0 ? why : "");
  if (status === "in_progress") return attempt > 1 ? "works, try " + attempt : "works";
  if (status === "cancelled") return error?.message?.startsWith("cancelled") ? error.message : "cancelled" + (error?.message ? ": " + error.message : "");
  return status === "failed" ? "failed" + why : "";
}

/** One turn on the page. */
class Turn {
  constructor(id, ordinal) {
    this.id = id;
    this.ordinal = ordinal;
    this.status = "pending";
    this.growing = new Map(); // by subagent: what the next block says so far
    this.said = element("div", "said", "…");
    this.answer = element("div", "answer");
    this.line = element("p", "status");
    this.box = element("section", "turn", this.said, this.answer, this.line);
    this.box.dataset.turn = id;
    this.box.setAttribute("aria-label", "Message " + ordinal);
  }

  /** What the user said. */
  message(text) {
    this.said.replaceChildren(folded(text, MESSAGE, "message"));
    this.known = true;
  }

  get open() {
    return !ENDED.includes(this.status);
  }

  show(state) {
    this.status = this.box.dataset.status = state.status;
    this.line.textContent = statusWords(state);
  }

  block(block) {
    this.drop(block.parent_tool_use_id);
    if (block.content.kind === "retraction") {
      this.answer.querySelector(`[data-seq="${Number(block.seq) - Number(block.content.places_back)}"]`)?.classList.add("retracted");
      return;
    }
    const shown = shape(block);
    shown.dataset.seq = block.seq;
    shown.classList.toggle("inner", Boolean(block.parent_tool_use_id));
    this.answer.insertBefore(shown, this.answer.querySelector(".growing"));
  }

  /** What the next block says so far, piece by piece; the block takes its place. */
  preview({ parent_tool_use_id, type, tool_name, at, text, withdrawn }) {
    if (withdrawn || at === 0) this.drop(parent_tool_use_id);
    if (at === 0) {
      const begun = shape({ type, content: { text: "", tool_name, parameters: "" } });
      begun.classList.add("growing");
      begun.classList.toggle("inner", Boolean(parent_tool_use_id));
      // It is read out when it is whole.
      begun.setAttribute("aria-hidden", "true");
      this.answer.append(begun);
      this.growing.set(parent_tool_use_id, begun);
    }
    const shown = this.growing.get(parent_tool_use_id);
    if (shown && text) (shown.querySelector(".parameters") ?? shown).append(text);
  }

  /** Takes what is shown so far of one subagent's next block away, … */
  drop(parent) {
    this.growing.get(parent)?.remove();
    this.growing.delete(parent);
  }

  /** … or of everybody's. */
  dropAll() {
    for (const parent of [...this.growing.keys()]) this.drop(parent);
  }

  /** The answer starts over. */
  startOver() {
    this.growing.clear();
    this.answer.replaceChildren();
  }

  files({ data, unlisted }) {
    this.list?.remove();
    if (data.length === 0 && !unlisted) return;
    this.list = element("ul", "files", ...data.slice(0, FILES_MAX).map((file) => fileLine(this.id, file)));
    this.list.setAttribute("aria-label", "Files changed");
    if (data.length > FILES_MAX) this.list.append(element("li", "", "and " + (data.length - FILES_MAX) + " more"));
    if (unlisted) this.list.append(element("li", "", "not all: " + unlisted));
    this.box.insertBefore(this.list, this.line);
  }
}

/** The turns of a session in their order. `added` is called with each new one. */
export class Turns {
  constructor(log, added) {
    this.log = log;
    this.added = added;
    this.byId = new Map();
  }

  of(id, ordinal) {
    let turn = this.byId.get(id);
    if (turn) return turn;
    turn = new Turn(id, ordinal);
    const next = this.all().find((other) => other.ordinal > ordinal);
    this.log.insertBefore(turn.box, next ? next.box : null);
    this.byId.set(id, turn);
    this.added(turn);
    return turn;
  }

  all() {
    return [...this.byId.values()].sort((a, b) => a.ordinal - b.ordinal);
  }

  open() {
    return this.all().filter((turn) => turn.open);
  }
}
