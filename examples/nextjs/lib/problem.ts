// What is wrong with a request, as application/problem+json.

export class Problem extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    readonly detail: string,
  ) {
    super(detail);
  }
}

function response({ status, code, detail }: Problem): Response {
  return Response.json({ type: "about:blank", status, code, detail }, { status, headers: { "content-type": "application/problem+json" } });
}

/** Postgres' own error, however deep it is wrapped. */
function ofPostgres(error: unknown): { code: string; message: string; hint?: string; constraint_name?: string } | null {
  for (let at = error; at instanceof Error; at = at.cause) {
    if ("code" in at && typeof at.code === "string" && "severity" in at) return at as Error & { code: string };
  }
  return null;
}

function problemOf(error: unknown): Problem {
  if (error instanceof Problem) return error;
  const refused = ofPostgres(error);
  if (refused?.constraint_name === "messages_body_max") return new Problem(422, "message_too_long", "A message has at most 4000 characters.");
  // TM400, TM404 and TM409 are Turnmill's, as docs/errors.md lists them; their words are for people and tell nothing of others.
  if (refused?.code === "TM400") return new Problem(400, "invalid_request", [refused.message, refused.hint].filter(Boolean).join(". "));
  // 22021: what no text of Postgres can hold, a NUL in a path.
  if (refused?.code === "TM404" || refused?.code === "22021") return new Problem(404, "not_found", "There is no such thing.");
  if (refused?.code === "TM409" && refused.message.startsWith("session ")) return new Problem(404, "not_found", "There is no such session.");
  if (refused?.code === "TM409") return new Problem(409, "conflict", [refused.message, refused.hint].filter(Boolean).join(". "));
  console.error("A request failed:", error);
  return new Problem(500, "internal", "Something went wrong here.");
}

/** A route handler whose errors are answered as problems. */
export function withProblems<Context>(handler: (request: Request, context: Context) => Promise<Response>) {
  return async (request: Request, context: Context): Promise<Response> => {
    try {
      return await handler(request, context);
    } catch (error) {
      return response(problemOf(error));
    }
  };
}
