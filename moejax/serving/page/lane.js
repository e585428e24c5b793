// One pane: the text of a run, token by token, and its clock.

import { formatRate, formatSeconds, Run } from "./run.js";

const CALM = matchMedia("(prefers-reduced-motion: reduce)");
// Between two paints of the clock, and where motion is to be reduced. A browser that paints takes time from a server on
// the same machine.
const PAINT_MS = 100;
const CALM_MS = 500;

const ENDS = { done: "", stopped: "stopped", failed: "cut off" };

/** A pane in `parent` for a text that continues `prompt`; `most` is the number of tokens at which its bar is full. */
export function createLane(parent, { name, note, prompt, most }) {
  const root = document.getElementById("lane-template").content.firstElementChild.cloneNode(true);
  const text = root.querySelector(".text");
  const bar = root.querySelector(".track > div");
  const values = Object.fromEntries([...root.querySelectorAll("[data-stat]")].map((dd) => [dd.dataset.stat, dd]));
  const run = new Run();
  const spans = []; // one per token
  root.querySelector("h3").textContent = name;
  text.setAttribute("aria-label", `Text of ${name}`);
  text.append(element("span", "prompt", prompt));
  parent.append(root);
  let clock = null; // the timer that paints
  say(note);

  function say(line) {
    root.querySelector(".lane-note").textContent = line;
  }

  function append(tokens) {
    const follows = text.scrollHeight - text.scrollTop - text.clientHeight < 40;
    for (const token of tokens) {
      const span = element("span", "token", token.text);
      span.dataset.index = spans.length;
      spans.push(span);
      text.append(span);
    }
    if (follows) text.scrollTop = text.scrollHeight;
  }

  function paint() {
    values.time.textContent = formatSeconds(run.elapsed);
    values.ttft.textContent = formatSeconds(run.firstSeconds);
    values.tokens.textContent = run.tokens.length;
    values.rate.textContent = formatRate(run.rate);
    bar.style.width = run.ended ? "100%" : `${Math.min(100, (100 * run.tokens.length) / most)}%`;
  }

  return {
    name,
    root,
    text,
    spans,
    run,
    say,

    /** Starts the clock. */
    begin() {
      root.dataset.state = "running";
      run.start();
      clock = setInterval(paint, CALM.matches ? CALM_MS : PAINT_MS);
    },

    /** Shows what a chunk brought; returns its tokens. */
    take(chunk) {
      const tokens = run.take(chunk);
      append(tokens);
      return tokens;
    },

    /** Stops the clock. `state` is "done", "stopped" or "failed". */
    end(state) {
      run.end();
      clearInterval(clock);
      root.dataset.state = state;
      say([ENDS[state], root.querySelector(".lane-note").textContent].filter(Boolean).join("; "));
      paint();
    },
  };
}

function element(tag, className, content) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = content;
  return made;
}
