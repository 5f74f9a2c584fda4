import { bigint, pgTable, text, timestamp } from "drizzle-orm/pg-core";
import { drizzle } from "drizzle-orm/postgres-js";
import postgres from "postgres";

/** As `schema.sql` makes it. */
export const messages = pgTable("messages", {
  id: bigint({ mode: "number" }).primaryKey().generatedAlwaysAsIdentity(),
  projectId: text("project_id").notNull(),
  sessionId: text("session_id").notNull(),
  body: text().notNull(),
  turnId: text("turn_id").notNull().unique(),
  createdAt: timestamp("created_at", { withTimezone: true }).notNull().defaultNow(),
});

function connect() {
  const url = process.env.DATABASE_URL;
  if (!url) throw new Error("DATABASE_URL is not set: `turnmill dev` prints the one of its Postgres");
  // Without prepared statements it also works through PgBouncer in transaction mode.
  return drizzle(postgres(url, { prepare: false }));
}

export type Database = ReturnType<typeof connect>;
/** The database, or a transaction in it. */
export type Queryable = Pick<Database, "execute" | "select" | "insert">;

// Next loads modules anew when they change; connections are to stay.
const kept = globalThis as { database?: Database };

/** Connects with the first request, so that a build needs no database. */
export function database(): Database {
  return (kept.database ??= connect());
}
