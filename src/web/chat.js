// The session's id is in the address, so a reload is the same conversation. Everything shown comes from the session's
// stream: a reload reads it from the beginning, a cut goes on from the last id by itself (EventSource).
// Whatever an agent says is put in as text, never as HTML.

const $ = (id) => document.getElementById(id);
const session = decodeURIComponent(location.hash.slice(1)) || crypto.randomUUID();
history.replaceState(null, "", "#" + encodeURIComponent(session));
addEventListener("hashchange", () => location.reload());
$("new").addEventListener("click", (event) => {
  event.preventDefault();
  location.hash = crypto.randomUUID();
});
$("session").textContent = session;
const api = "/v1/sessions/" + encodeURIComponent(session);
const turns = new Map(); // turn id → { ordinal, status, box, answer, line }

function make(parent, className, text) {
  const element = document.createElement("div");
  element.className = className;
  element.textContent = text;
  parent.append(element);
  return element;
}

function turnOf(id, ordinal) {
  let turn = turns.get(id);
  if (turn) return turn;
  const box = document.createElement("section");
  const after = [...turns.values()].filter((other) => other.ordinal > ordinal).sort((a, b) => a.ordinal - b.ordinal)[0];
  $("turns").insertBefore(box, after ? after.box : null);
  const said = make(box, "said", "…");
  turn = { ordinal, status: "pending", box, answer: make(box, "answer", ""), line: make(box, "status", "") };
  turns.set(id, turn);
  fetch("/v1/turns/" + encodeURIComponent(id)).then((answer) => answer.json()).then((whole) => (said.textContent = whole.user_message));
  return turn;
}

function block({ type, content }, answer) {
  const text = (value) => (typeof value === "string" ? value : JSON.stringify(value));
  if (type === "thinking") make(answer, "thinking", text(content.text));
  else if (type === "tool_use") make(answer, "tool", "▸ " + content.tool_name + " " + text(content.parameters));
  else if (type === "tool_result") make(answer, content.error ? "result error" : "result", text(content.error ?? content.result));
  else make(answer, content.kind === "error" ? "error" : "content", text(content.text));
}

function show(state) {
  const turn = turnOf(state.turn_id, state.ordinal);
  turn.status = state.status;
  const why = state.wait_reason ? ": " + state.wait_reason : state.error && state.status !== "completed" ? ": " + state.error.code : "";
  turn.line.textContent = state.status === "completed" ? "" : state.status.replace("_", " ") + why;
  $("stop").hidden = ![...turns.values()].some((turn) => turn.status === "in_progress" || turn.status === "pending");
}

function listen() {
  const events = new EventSource(api + "/stream");
  const on = (name, act) => events.addEventListener(name, (event) => act(JSON.parse(event.data)));
  on("status", show);
  on("end", show);
  on("generation", ({ turn_id }) => turns.get(turn_id)?.answer.replaceChildren());
  on("block", (one) => {
    block(one, turns.get(one.turn_id).answer);
    if (innerHeight + scrollY > document.body.scrollHeight - 300) scrollTo(0, document.body.scrollHeight);
  });
  on("caught_up", () => ($("line").textContent = ""));
  events.onerror = () => ($("line").textContent = "reconnecting …");
  return events;
}

let events = null;
async function send(message) {
  const answer = await fetch(api + "/turns", {
    method: "POST",
    headers: { "content-type": "application/json", "idempotency-key": crypto.randomUUID() },
    body: JSON.stringify({ user_message: message, project_id: "chat" }),
  });
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.detail);
  events ??= listen();
}

$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const message = $("message").value;
  if (!message.trim()) return;
  $("message").value = "";
  try {
    await send(message);
  } catch (error) {
    $("message").value = message;
    $("line").textContent = error.message;
  }
});
$("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("form").requestSubmit();
  }
});
$("stop").addEventListener("click", async () => {
  // Also those that wait: newest first, so that none starts meanwhile.
  const open = [...turns].filter(([, turn]) => turn.status === "in_progress" || turn.status === "pending");
  for (const [id] of open.sort(([, a], [, b]) => b.ordinal - a.ordinal)) {
    await fetch("/v1/turns/" + encodeURIComponent(id) + "/cancel", { method: "POST" });
  }
});

// There is nothing to listen to before the first message.
fetch(api).then((answer) => answer.ok && (events = listen()));
