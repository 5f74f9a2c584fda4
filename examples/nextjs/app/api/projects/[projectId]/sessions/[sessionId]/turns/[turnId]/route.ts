import { database } from "@/db";
import { Problem, withProblems } from "@/lib/problem";
import { readTurn } from "@/lib/turnmill";

type Context = { params: Promise<{ projectId: string; sessionId: string; turnId: string }> };

/** Status and blocks after `?after=`: poll with `next_after` until the status is completed, failed or cancelled. */
export const GET = withProblems(async (request: Request, { params }: Context) => {
  const { projectId, sessionId, turnId } = await params;
  const after = new URL(request.url).searchParams.get("after") ?? "-1";
  if (!/^(-1|[0-9]{1,9})$/.test(after)) throw new Problem(400, "invalid_request", "after must be the next_after of an answer before, or -1.");
  const reading = await readTurn(database(), projectId, sessionId, turnId, Number(after));
  if (!reading) throw new Problem(404, "not_found", "There is no such turn.");
  return Response.json(reading);
});
