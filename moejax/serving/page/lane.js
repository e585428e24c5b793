// One pane: the text of a run, token by token, and its clock.

import { formatRate, formatSeconds, Run } from "./run.js";

const CALM = matchMedia("(prefers-reduced-motion: reduce)");
const CALM_MS = 500; // between two paints of the clock where motion is to be reduced

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
  let painted = 0;
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

  function tick(now) {
    if (run.ended) return;
    if (!CALM.matches || now - painted > CALM_MS) {
      paint();
      painted = now;
    }
    requestAnimationFrame(tick);
  }

  return {
    root,
    text,
    spans,
    run,
    say,

    /** Starts the clock. */
    begin() {
      root.dataset.state = "running";
      text.setAttribute("aria-busy", "true"); // a screen reader waits for the whole text
      run.start();
      requestAnimationFrame(tick);
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
      root.dataset.state = state;
      text.setAttribute("aria-busy", "false");
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
