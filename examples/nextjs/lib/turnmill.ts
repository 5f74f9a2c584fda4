// Turnmill in SQL: there is no client library, and none is needed.

import { sql } from "drizzle-orm";
import type { Queryable } from "@/db";

export type Receipt = {
  turn_id: string | null; // null: rejected
  session_id: string;
  status: string | null;
  replayed: boolean;
  waits_for: string | null;
  disposition: "started" | "queued" | "interrupting" | "rejected";
  queue_position: number;
};

export type Block = {
  seq: number;
  type: "thinking" | "content" | "tool_use" | "tool_result";
  content: Record<string, unknown>;
  parent_tool_use_id: string | null;
  created_at: string;
};

export type Reading = {
  status: "pending" | "in_progress" | "completed" | "failed" | "cancelled";
  generation: number;
  waits_for: string | null;
  error_code: string | null;
  error_message: string | null;
  next_after: number;
  blocks: Block[];
};

export type Message = { prompt: string; projectId: string; sessionId: string; idempotencyKey: string | null };

/** Enqueues a turn in the caller's transaction: it runs if and when that commits. */
export async function enqueueTurn(tx: Queryable, { prompt, projectId, sessionId, idempotencyKey }: Message): Promise<Receipt> {
  const [receipt] = await tx.execute<Receipt>(sql`
    SELECT * FROM turnmill.enqueue_turn(
      prompt => ${prompt}, project_id => ${projectId}, session_id => ${sessionId}, idempotency_key => ${idempotencyKey})`);
  return receipt;
}

/** A turn of this session and its blocks after one, from one moment; null: there is none. */
export async function readTurn(db: Queryable, projectId: string, sessionId: string, turnId: string, after: number): Promise<Reading | null> {
  // Whose turn it is comes first: read_turn alone would read everybody's.
  const [reading] = await db.execute<Reading>(sql`
    SELECT r.* FROM turnmill.turns t, turnmill.read_turn(t.id, after => ${after}) r
    WHERE t.id = ${turnId} AND t.session_id = ${sessionId} AND t.project_id = ${projectId}`);
  return reading ?? null;
}
