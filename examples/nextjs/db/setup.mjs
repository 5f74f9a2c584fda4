// Makes the app's own table: npm run setup
import { readFile } from "node:fs/promises";
import postgres from "postgres";

const url = process.env.DATABASE_URL;
if (!url) {
  console.error("DATABASE_URL is not set: `turnmill dev` prints the one of its Postgres");
  process.exit(1);
}
const sql = postgres(url, { onnotice: () => {} });
await sql.unsafe(await readFile(new URL("schema.sql", import.meta.url), "utf8"));
await sql.end();
