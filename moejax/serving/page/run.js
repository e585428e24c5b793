// One answer as it arrives: its tokens, the experts they went to, and its clock.

/** A run that has not begun. Its clock starts with `start`. */
export class Run {
  constructor() {
    this.tokens = []; // { id, text, experts: per layer those that worked on it, null where they were not asked for }
    this.startedAt = null; // of performance.now(), ms
    this.firstSeconds = null; // until the first token, on the server's clock
    this.seconds = null; // until the latest token, on the server's clock
    this.latestAt = null; // when the latest token arrived here, ms
    this.finishReason = null;
    this.ended = false;
  }

  start() {
    this.startedAt = performance.now();
  }

  /** Takes a chunk of a completion, a chat or the baseline. Returns the tokens that it brought. */
  take(chunk) {
    const choice = chunk.choices[0];
    const extra = chunk.moejax;
    if (choice?.finish_reason) this.finishReason = choice.finish_reason;
    if (!extra?.token_ids) return [];
    const whole = choice?.text ?? choice?.delta?.content ?? "";
    const texts = extra.texts ?? extra.token_ids.map((_, place) => (place === 0 ? whole : ""));
    const added = extra.token_ids.map((id, place) => ({
      id,
      text: texts[place],
      experts: extra.routed_experts?.[place] ?? null,
    }));
    if (added.length > 0) {
      this.firstSeconds ??= extra.time;
      this.seconds = extra.time;
      this.latestAt = performance.now();
      this.tokens.push(...added);
    }
    return added;
  }

  end() {
    this.ended = true;
  }

  /** Seconds on this run's clock: the server's own for what has arrived, going on until the run ends. */
  get elapsed() {
    if (this.startedAt === null) return null;
    if (this.seconds === null) return this.ended ? null : (performance.now() - this.startedAt) / 1000;
    return this.ended ? this.seconds : this.seconds + (performance.now() - this.latestAt) / 1000;
  }

  /** Tokens per second of the clock, the wait for the first one included. */
  get rate() {
    return this.seconds > 0 ? this.tokens.length / this.seconds : null;
  }
}

export function formatSeconds(seconds) {
  if (seconds === null) return "–";
  return seconds < 0.1 ? `${(seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0)} ms` : `${seconds.toFixed(2)} s`;
}

export function formatRate(rate) {
  if (rate === null) return "–";
  return rate < 10 ? rate.toFixed(1) : Math.round(rate).toLocaleString("en");
}
