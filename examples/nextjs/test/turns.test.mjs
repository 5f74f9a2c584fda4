// Against the built app, a real Postgres and a fleet that runs the stand-in agent: APP_URL and DATABASE_URL say where.

import assert from "node:assert/strict";
import { after, test } from "node:test";
import postgres from "postgres";

const app = process.env.APP_URL;
const sql = postgres(process.env.DATABASE_URL);
after(() => sql.end());

/** A session that nobody else has, in a project of its own. */
function session() {
  const [project, id] = [`p ${crypto.randomUUID()}`, `s/${crypto.randomUUID()}`];
  const at = `/api/projects/${encodeURIComponent(project)}/sessions/${encodeURIComponent(id)}/turns`;
  return { project, id, at };
}

async function ask(path, options) {
  const answer = await fetch(app + path, options);
  const body = await answer.json();
  if (!answer.ok) {
    assert.equal(answer.headers.get("content-type"), "application/problem+json");
    assert.equal(body.status, answer.status);
  }
  return { status: answer.status, body, headers: answer.headers };
}

function say(at, message, key) {
  const headers = { "content-type": "application/json", ...(key && { "idempotency-key": key }) };
  return ask(at, { method: "POST", headers, body: JSON.stringify({ user_message: message }) });
}

/** Polls as a client does: what it has when the turn has ended. */
async function follow(location) {
  const blocks = [];
  for (let after = -1; ; ) {
    const { status, body } = await ask(`${location}?after=${after}`);
    assert.equal(status, 200);
    blocks.push(...body.blocks);
    after = body.next_after;
    if (["completed", "failed", "cancelled"].includes(body.status) && body.blocks.length === 0) return { ...body, blocks };
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

/** How many rows there are of a session: the app's and the fleet's. */
async function rows({ project, id }) {
  const [{ ours, theirs }] = await sql`
    SELECT (SELECT count(*) FROM messages WHERE project_id = ${project} AND session_id = ${id})::int AS ours,
           (SELECT count(*) FROM turnmill.turns WHERE project_id = ${project} AND session_id = ${id})::int AS theirs`;
  return { ours, theirs };
}

test("a message becomes a turn, its blocks are read while they come, and it completes", async () => {
  const one = session();
  const { status, body, headers } = await say(one.at, "/mock tools\n<script>alert(1)</script> '; DROP TABLE messages; --");
  assert.equal(status, 202);
  assert.match(body.turn_id, /^turn_/);
  assert.deepEqual([body.disposition, body.replayed, body.session_id], ["started", false, one.id]);
  assert.equal(headers.get("location"), `${one.at}/${body.turn_id}`);
  const read = await follow(headers.get("location"));
  assert.equal(read.status, "completed");
  assert.deepEqual(read.blocks.map((block) => block.seq), [...read.blocks.keys()]);
  const kinds = ["content", "tool_use", "tool_result", "tool_use", "tool_result", "tool_use", "tool_result", "content"];
  assert.deepEqual(read.blocks.map((block) => block.type), kinds);
  assert.deepEqual(read.blocks[1].content.parameters, { command: "ls" });
  const { body: list } = await ask(one.at);
  assert.deepEqual(list.data.map((row) => [row.turn_id, row.user_message.split("\n")[0]]), [[body.turn_id, "/mock tools"]]);
});

test("the second message of a session remembers the first", async () => {
  const one = session();
  await say(one.at, "/mock noop");
  const { body } = await say(one.at, '/mock {"steps": [{"recall": null}]}');
  const read = await follow(`${one.at}/${body.turn_id}`);
  assert.equal(read.blocks[0].content.text, "/mock noop");
});

test("a transaction that fails after the enqueue leaves neither the message nor the turn", async () => {
  const one = session();
  const { status, body } = await say(one.at, "x".repeat(4001));
  assert.deepEqual([status, body.code, body.detail], [422, "message_too_long", "A message has at most 4000 characters."]);
  assert.deepEqual(await rows(one), { ours: 0, theirs: 0 });
  // The session itself is rolled back as well, and the same request in good order is taken.
  assert.equal((await sql`SELECT FROM turnmill.sessions WHERE id = ${one.id}`).length, 0);
  assert.equal((await say(one.at, "/mock noop")).status, 202);
  assert.deepEqual(await rows(one), { ours: 1, theirs: 1 });
});

test("the same key is the same turn and the same message, also at the same time; with another body it is refused", async () => {
  const one = session();
  const answers = await Promise.all(Array.from({ length: 8 }, () => say(one.at, "/mock noop", "m42")));
  assert.deepEqual([...new Set(answers.map(({ status }) => status))], [202]);
  assert.equal(new Set(answers.map(({ body }) => body.turn_id)).size, 1);
  assert.equal(answers.filter(({ body }) => !body.replayed).length, 1);
  assert.deepEqual(await rows(one), { ours: 1, theirs: 1 });
  const { status, body } = await say(one.at, "/mock tools", "m42");
  assert.deepEqual([status, body.code], [409, "conflict"]);
  assert.match(body.detail, /m42/);
  assert.deepEqual(await rows(one), { ours: 1, theirs: 1 });
});

test("what is another's is not there", async () => {
  const [one, other] = [session(), session()];
  const { body } = await say(one.at, "/mock noop");
  for (const at of [other.at, one.at.replace(encodeURIComponent(one.id), encodeURIComponent(other.id))]) {
    const { status, body: problem } = await ask(`${at}/${body.turn_id}`);
    assert.deepEqual([status, problem.code], [404, "not_found"]);
  }
  // A session of another project.
  const foreign = other.at.replace(encodeURIComponent(other.id), encodeURIComponent(one.id));
  const { status, body: problem } = await say(foreign, "/mock noop");
  assert.deepEqual([status, problem.detail], [404, "There is no such session."]);
  assert.deepEqual((await ask(foreign)).body.data, []);
  assert.deepEqual(await rows(one), { ours: 1, theirs: 1 });
});

test("bad input is told what is wrong with it and writes nothing", async () => {
  const one = session();
  const post = (body, headers = {}) => ask(one.at, { method: "POST", headers: { "content-type": "application/json", ...headers }, body });
  const bad = ["", "{", "null", "[]", "{}", '"text"', '{"user_message": 1}', '{"user_message": " "}', '{"user_message": "a\\u0000b"}'];
  for (const body of bad) {
    const answer = await post(body);
    assert.equal(answer.status, 400, body);
    assert.match(answer.body.detail, /not JSON|user_message must be a text/);
  }
  const long = await post('{"user_message": "hi"}', { "idempotency-key": "k".repeat(300) });
  assert.deepEqual([long.status, long.body.code], [400, "invalid_request"]);
  for (const after of ["x", "-2", "1.5", "99999999999"]) assert.equal((await ask(`${one.at}/turn_x?after=${after}`)).status, 400, after);
  assert.equal((await ask(`${one.at}/turn_x`)).status, 404);
  assert.deepEqual(await rows(one), { ours: 0, theirs: 0 });
});
