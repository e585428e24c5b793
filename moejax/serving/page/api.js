// Requests to the server that sent this page: the key, errors in one form, streams.

import { events, StreamCut } from "./sse.js";

/** The server answered, and what it said is no answer. */
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** The server did not answer, or stopped in the middle of an answer. */
export class ServerGone extends Error {
  constructor() {
    super("the server does not answer");
  }
}

const KEY = "moejax-api-key";

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
          if (value.error) throw new ApiError(value.error.message, value.error.code);
          yield value;
        }
      } finally {
        await chunks.return();
      }
    },

    /** Whether the server says that it can answer. */
    async healthy() {
      try {
        return (await fetch("health", { cache: "no-store" })).ok;
      } catch (error) {
        if (error instanceof TypeError) return false; // what fetch throws when there is no connection
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
    return new ApiError(JSON.parse(text).error.message, response.status);
  } catch (error) {
    if (!(error instanceof SyntaxError || error instanceof TypeError)) throw error;
    return new ApiError(`${response.status} ${response.statusText}`.trim(), response.status); // a proxy's own page
  }
}
