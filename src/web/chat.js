// The session's id is in the address, so a reload is the same conversation. Everything shown comes from the session's
// stream: a reload reads it from the beginning, a cut goes on from the last id.

import { Turns } from "/chat_turns.js";

/** Before it is tried again to reach the server, in ms; half of it more at random. */
const PAUSE = 1000;

/** As near to the end of the page as this, in pixels, it follows what comes. */
const NEAR = 80;

const $ = (id) => document.getElementById(id);
const json = { "content-type": "application/json" };

// --- The session

function sessionInAddress() {
  try {
    const id = decodeURIComponent(location.hash.slice(1));
    // No path of the web can end in these.
    if (id !== "." && id !== "..") return id;
  } catch {
    // No text: an escape is cut.
  }
  $("notice").textContent = "The address names no session, so this is a new conversation.";
  return "";
}

const session = sessionInAddress() || crypto.randomUUID();
const api = "/v1/sessions/" + encodeURIComponent(session);
const turnApi = (id) => "/v1/turns/" + encodeURIComponent(id);
$("session").textContent = session;
history.replaceState(null, "", "#" + encodeURIComponent(session));
addEventListener("hashchange", () => location.reload());
$("new").addEventListener("click", () => (location.hash = crypto.randomUUID()));

/** The answer as JSON; a problem is thrown, with its status. */
async function ask(path, options) {
  const answer = await fetch(path, options);
  const told = await answer.json().catch(() => null);
  if (!answer.ok) throw Object.assign(new Error(told?.detail ?? "The server answered " + answer.status), { status: answer.status });
  return told;
}

// --- The turns

const sent = new Map(); // turn id → the message, of those that this page has sent
const turns = new Turns($("turns"), (turn) => {
  $("empty").hidden = true;
  if (sent.has(turn.id)) turn.message(sent.get(turn.id));
  else readMessage(turn);
});

async function readMessage(turn) {
  try {
    turn.message((await ask(turnApi(turn.id))).user_message);
  } catch {
    // Once more when the stream is back.
  }
}

async function readFiles(turn) {
  try {
    turn.files(await ask(turnApi(turn.id) + "/artifacts"));
  } catch (error) {
    $("notice").textContent = "The turn's files could not be listed: " + error.message;
  }
}

function show(state) {
  const turn = turns.of(state.turn_id, state.ordinal);
  turn.show(state);
  $("stop").hidden = turns.open().length === 0;
  return turn;
}

// --- The stream

let stream = null;
let last = ""; // where it goes on

const CONNECTION = { new: "nothing said yet", connecting: "connecting …", live: "connected", away: "reconnecting …", gone: "not there" };

function connection(state) {
  $("connection").dataset.state = state;
  $("connection").textContent = CONNECTION[state];
}

function listen() {
  stream = new EventSource(api + "/stream?previews=true" + (last && "&after=" + encodeURIComponent(last)));
  const on = (name, act) =>
    stream.addEventListener(name, (event) => {
      last = event.lastEventId || last;
      act(JSON.parse(event.data));
    });
  on("status", show);
  // Of a turn that has ended the blocks come first. An event's id begins with the turn's place.
  on("block", (block) => turns.of(block.turn_id, Number(last.split(":")[0])).block(block));
  on("generation", ({ turn_id }) => turns.byId.get(turn_id)?.startOver());
  on("preview", (preview) => turns.byId.get(preview.turn_id)?.preview(preview));
  on("end", (state) => {
    const turn = show(state);
    turn.dropAll();
    readFiles(turn);
  });
  on("caught_up", () => {
    connection("live");
    $("turns").setAttribute("aria-busy", "false");
    turns.all().filter((turn) => !turn.known).forEach(readMessage);
  });
  stream.onerror = () => {
    connection("away");
    turns.all().forEach((turn) => turn.dropAll());
    // It comes back by itself after a cut, but not when it was answered with an error.
    if (stream.readyState === EventSource.CLOSED) again();
  };
}

function again() {
  stream?.close();
  stream = null;
  setTimeout(begin, PAUSE + (Math.random() * PAUSE) / 2);
}

async function begin() {
  try {
    await ask(api);
  } catch (error) {
    if (stream) return;
    if (error.status === undefined || error.status >= 500) {
      connection("away");
      return again();
    }
    // There is nothing to listen to before the first message.
    const fresh = error.status === 404 && turns.byId.size === 0;
    connection(fresh ? "new" : "gone");
    $("empty").hidden = !fresh;
    $("turns").setAttribute("aria-busy", "false");
    if (!fresh) $("notice").textContent = error.status === 404 ? "This conversation is no longer there. Begin a new one." : error.message;
    return;
  }
  if (!stream) listen();
}

// --- What the user does

let sending = Promise.resolve();

/**
 * Sends a message until there is an answer, always under one key: whether the server had it before an answer was lost can't be
 * told, and it must not be two turns. One that is refused goes back to where it was typed.
 */
async function send(message) {
  const headers = { ...json, "idempotency-key": crypto.randomUUID() };
  const body = JSON.stringify({ user_message: message, project_id: "chat" });
  for (;;) {
    try {
      const receipt = await ask(api + "/turns", { method: "POST", headers, body });
      sent.set(receipt.turn_id, message);
      turns.byId.get(receipt.turn_id)?.message(message);
      $("notice").textContent = "";
      if (!stream) listen();
      return;
    } catch (error) {
      if (error.status >= 400 && error.status < 500 && error.status !== 429) {
        $("message").value = [message, $("message").value].filter(Boolean).join("\n");
        $("notice").textContent = "Not sent: " + error.message;
        return;
      }
      $("notice").textContent = "Not sent yet: " + error.message + ". It is tried again; keep this page open.";
      await new Promise((done) => setTimeout(done, PAUSE + (Math.random() * PAUSE) / 2));
    }
  }
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const message = $("message").value;
  if (!message.trim()) return;
  $("message").value = "";
  follow(true);
  // One after the other, so that they stay in order.
  sending = sending.then(() => send(message));
});
$("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("form").requestSubmit();
  }
});

async function stop() {
  $("stop").disabled = true;
  try {
    // Also those that wait: newest first, so that none starts meanwhile.
    for (const turn of turns.open().reverse()) await ask(turnApi(turn.id) + "/cancel", { method: "POST" });
  } catch (error) {
    $("notice").textContent = "Not stopped: " + error.message;
  }
  $("stop").disabled = false;
  $("message").focus();
}

$("stop").addEventListener("click", stop);
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing && !$("stop").hidden && !$("stop").disabled) stop();
});

// --- Following the end of the page, unless the user has scrolled up

let following = true;
let top = 0;

function follow(whether) {
  following = whether;
  $("newest").hidden = whether;
  if (whether) scrollTo(0, document.documentElement.scrollHeight);
}

addEventListener("scroll", () => {
  // Only a way up is the user's: what comes in between makes the end seem far away, too.
  const near = innerHeight + scrollY > document.documentElement.scrollHeight - NEAR;
  if (near !== following && (near || scrollY < top)) follow(near);
  top = scrollY;
});
new ResizeObserver(() => following && follow(true)).observe($("turns"));
// Who opens something wants to read it where it is.
$("turns").addEventListener("click", (event) => event.target.closest("summary") && follow(false));
$("newest").addEventListener("click", () => follow(true));

begin();
