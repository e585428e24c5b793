// Requests to the server that sent this page: the key, errors in one form, streams.

import { events, StreamCut } from "./sse.js";

/** The server answered, and what it said is no answer. */
export class ApiError extends Error {
  constructor(message, status, code = null) {
    super(message);
    this.status = status;
    this.code = code; // a word for programs, where there is one
  }
}

/** The server did not answer, or stopped in the middle of an answer. */
export class ServerGone extends Error {
  constructor() {
    super("the server does not answer");
  }
}

const KEY = "moejax-api-key";
const SERVER_FAILED = 503; // what an error means that comes in a stream that has begun

/** `askForKey(rejected)` resolves to a key, or to null when the user gives none. */
export function connect(askForKey) {
  async function send(path, options = {}) {
    while (true) {
      const key = sessionStorage.getItem(KEY);
      const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
      const response = await answered(fetch(path, { ...options, headers, cache: "no-store" }));
      if (response.ok) return response;
      const error = await errorOf(response);
      if (error.status !== 401) throw error;
      const given = await askForKey(key !== null);
      if (given === null) throw error;
      sessionStorage.setItem(KEY, given);
    }
  }

  return {
    /** What `GET path` answers, as JSON. */
    async get(path) {
      return (await send(path)).json();
    },

    /** The chunks that `POST path` streams. */
    async *stream(path, body, signal) {
      const headers = { "Content-Type": "application/json" };
      const response = await send(path, { method: "POST", headers, body: JSON.stringify(body), signal });
      const chunks = events(response.body);
      try {
        while (true) {
          const { value, done } = await answered(chunks.next());
          if (done) return;
          if (value.error) throw new ApiError(value.error.message, SERVER_FAILED, value.error.code);
          yield value;
        }
      } finally {
        await chunks.return();
      }
    },

    /** What the server says of itself: "ready", "loading", "draining", "stopped" or "dead"; null when it says nothing. */
    async health() {
      try {
        return (await (await fetch("health", { cache: "no-store" })).json()).status;
      } catch (error) {
        if (error instanceof TypeError || error instanceof SyntaxError) return null; // no connection, or a proxy's page
        throw error;
      }
    },
  };
}

/** Of `promise`, but failures of the connection become ServerGone. */
async function answered(promise) {
  try {
    return await promise;
  } catch (error) {
    if (error instanceof TypeError || error instanceof StreamCut) throw new ServerGone();
    throw error;
  }
}

async function errorOf(response) {
  const text = await response.text();
  try {
    const { message, code } = JSON.parse(text).error;
    return new ApiError(message, response.status, code);
  } catch (error) {
    if (!(error instanceof SyntaxError || error instanceof TypeError)) throw error;
    return new ApiError(`${response.status} ${response.statusText}`.trim(), response.status); // a proxy's own page
  }
}
