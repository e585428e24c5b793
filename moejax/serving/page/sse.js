// Server-sent events of a fetch response, in the form in which the OpenAI API streams them.

/** The stream ended before its "[DONE]": the server is gone or gave up. */
export class StreamCut extends Error {
  constructor() {
    super("the stream ended before it was complete");
  }
}

/** Yields the parsed JSON of every event, until "[DONE]". Throws StreamCut when the body ends without it. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) throw new StreamCut();
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const data = dataOf(block);
        if (data === "[DONE]") return;
        if (data !== "") yield JSON.parse(data);
      }
    }
  } finally {
    // Of a stream that is read to its end this does nothing; else it tells the server that nobody listens.
    reader.cancel().catch(ignoreCancelled);
  }
}

/** The data lines of one event, joined; comments (": ping") and other fields have none. */
function dataOf(block) {
  return block
    .split(/\r?\n/)
    .filter((line) => line.startsWith("data:"))
    .map((line) => line.slice(5).replace(/^ /, ""))
    .join("\n");
}

/** Cancelling a stream that has failed rejects with that failure, which the reader has thrown already. */
function ignoreCancelled() {}
