import { and, asc, eq } from "drizzle-orm";
import { database, messages } from "@/db";
import { Problem, withProblems } from "@/lib/problem";
import { enqueueTurn } from "@/lib/turnmill";

type Context = { params: Promise<{ projectId: string; sessionId: string }> };

/** The user's message: `{"user_message": "Fix the login bug"}`. */
async function read(request: Request): Promise<string> {
  const body: unknown = await request.json().catch(() => {
    throw new Problem(400, "invalid_json", "The body is not JSON.");
  });
  const said = typeof body === "object" && body !== null && "user_message" in body ? body.user_message : undefined;
  if (typeof said !== "string" || said.trim() === "" || said.includes("\0")) {
    throw new Problem(400, "invalid_request", "user_message must be a text that is not empty and has no NUL in it.");
  }
  return said;
}

/** Takes a message: the app's own row and the turn, in one transaction, so both or none. */
export const POST = withProblems(async (request: Request, { params }: Context) => {
  // Your own check of who asks belongs here: may they write in this project?
  const { projectId, sessionId } = await params;
  const prompt = await read(request);
  const idempotencyKey = request.headers.get("idempotency-key");
  const receipt = await database().transaction(async (tx) => {
    const receipt = await enqueueTurn(tx, { prompt, projectId, sessionId, idempotencyKey });
    if (receipt.turn_id === null) throw new Problem(409, "session_busy", "The session has an unfinished turn, and this one was not to wait.");
    // The same request once more: its row is there.
    if (!receipt.replayed) await tx.insert(messages).values({ projectId, sessionId, body: prompt, turnId: receipt.turn_id });
    return receipt;
  });
  const location = `${new URL(request.url).pathname}/${encodeURIComponent(receipt.turn_id ?? "")}`;
  return Response.json(receipt, { status: 202, headers: { location } });
});

/** The session's messages, oldest first. */
export const GET = withProblems(async (_: Request, { params }: Context) => {
  const { projectId, sessionId } = await params;
  const rows = await database()
    .select({ turn_id: messages.turnId, user_message: messages.body, created_at: messages.createdAt })
    .from(messages)
    .where(and(eq(messages.projectId, projectId), eq(messages.sessionId, sessionId)))
    .orderBy(asc(messages.id));
  return Response.json({ data: rows });
});
