// Which experts the tokens of an answer used: all tokens together, or one token that is pointed at or chosen.

import { createExpertTable, percent } from "./expert_table.js";

const REPAINT_MS = 250; // between two paints of a table that grows: painting takes time from the server beside it
const MOST_IN_A_LINE = 8; // experts that are listed of a layer
const MOST_SPOKEN = 4; // layers whose experts are said with a token; the list has them all

/** The table, its picker and its words, for a model as `facts` describes it. */
export function createHeatmap(section, facts, announce) {
  const { num_layers: layers, num_experts: experts, experts_per_token: perToken } = facts;
  const part = (id) => section.querySelector(`#${id}`);
  const [slider, route, unpin, words, cellLine] = ["token", "token-route", "unpin", "in-words", "cell"].map(part);
  const table = createExpertTable(part("experts-grid"), layers, experts, tellCell);
  part("experts-note").textContent =
    "A cell shows on how many of this answer's tokens an expert worked. Point at a token of the answer, or choose one " +
    "here, to see its experts.";
  part("legend-even").textContent = `if used evenly: ${percent(perToken / experts)}`;

  const life = new AbortController(); // of its hold on the section
  let tokens = []; // with their experts
  let counts = []; // of tokens, [layer][expert]
  let spans = []; // that show the tokens
  let pinned = null; // index of the token that was chosen
  let shown = null; // index of the token that the table shows
  let paintedAt = -Infinity;
  let waiting = null; // the timer of the next paint

  /** Forgets the last answer. */
  function clear() {
    tokens = [];
    spans = [];
    counts = Array.from({ length: layers }, () => new Array(experts).fill(0));
    slider.max = 0;
    pin(null);
    section.hidden = true;
  }

  /** Takes the pane in which the next answer is shown. */
  function follow(lane) {
    spans = lane.spans;
    lane.text.addEventListener("pointerover", (event) => show(indexOf(event.target) ?? pinned));
    lane.text.addEventListener("pointerleave", () => show(pinned));
    lane.text.addEventListener("click", (event) => pin(indexOf(event.target)));
    lane.text.addEventListener("keydown", onKey);
  }

  function add(added) {
    if (added.length === 0) return;
    section.hidden = false;
    tokens.push(...added);
    for (const token of added) token.experts.forEach((ids, layer) => ids.forEach((id) => (counts[layer][id] += 1)));
    waiting ??= setTimeout(paint, Math.max(0, paintedAt + REPAINT_MS - performance.now()));
  }

  function paint() {
    clearTimeout(waiting);
    waiting = null;
    paintedAt = performance.now();
    const { largest } = busiest();
    slider.max = Math.max(0, tokens.length - 1);
    table.paint(counts, tokens.length, largest);
    const most = largest / Math.max(1, tokens.length);
    part("legend-most").textContent = percent(most);
    part("even-mark").style.setProperty("--at", `${Math.min(100, (100 * perToken) / experts / Math.max(most, 0.001))}%`);
    describeShown();
  }

  function busiest() {
    let found = { largest: 0, layer: 0, expert: 0 };
    counts.forEach((row, layer) =>
      row.forEach((count, expert) => {
        if (count > found.largest) found = { largest: count, layer, expert };
      }),
    );
    return found;
  }

  /** Shows the token `index`, or all of them for null. */
  function show(index) {
    if (index === shown && index !== null) return;
    spans[shown]?.classList.remove("picked");
    spans[index]?.classList.add("picked");
    shown = index;
    table.mark(index === null ? null : tokens[index].experts);
    if (index !== null) slider.value = index;
    describeShown();
  }

  function describeShown() {
    route.textContent = shown === null ? totals() : aloud(shown);
    slider.setAttribute("aria-valuetext", shown === null ? "all tokens" : aloud(shown));
    if (words.open) listWords();
  }

  function totals() {
    if (tokens.length === 0) return "";
    const { largest, layer, expert } = busiest();
    const share = percent(largest / tokens.length);
    return `All ${tokens.length} tokens. The busiest is expert ${expert} of layer ${layer}: it worked on ${share} of them.`;
  }

  function aloud(index) {
    const { text, experts: chosen } = tokens[index];
    const name = `Token ${index + 1} of ${tokens.length}, “${visible(text)}”`;
    if (layers > MOST_SPOKEN) return `${name}.`;
    return `${name}: ${chosen.map((ids, layer) => `layer ${layer}: ${sorted(ids).join(", ")}`).join("; ")}.`;
  }

  /** What the table shows, a line per layer. */
  function listWords() {
    const lines = shown === null ? counts.map(layerTotals) : tokens[shown].experts.map(layerOfToken);
    words.querySelector("ul").replaceChildren(
      ...lines.map((line) => {
        const item = document.createElement("li");
        item.textContent = line;
        return item;
      }),
    );
  }

  function layerTotals(row, layer) {
    const order = row.map((count, expert) => [count, expert]).sort(([a, i], [b, j]) => b - a || i - j);
    const used = order.filter(([count]) => count > 0);
    const listed = used.slice(0, MOST_IN_A_LINE);
    const parts = listed.map(([count, expert]) => `expert ${expert} ${percent(count / tokens.length)}`);
    if (used.length > listed.length) parts.push(`${used.length - listed.length} others less`);
    if (used.length < experts) parts.push(`${experts - used.length} not at all`);
    return `Layer ${layer}: ${parts.join(", ")}`;
  }

  function layerOfToken(ids, layer) {
    return `Layer ${layer}: ${ids.length === 1 ? "expert" : "experts"} ${sorted(ids).join(", ")}`;
  }

  function tellCell(layer, expert) {
    const count = layer === null ? null : counts[layer][expert];
    cellLine.textContent =
      count === null
        ? "Point at a cell for its numbers, or move through the table with the arrow keys."
        : `Expert ${expert} of layer ${layer} worked on ${count} of ${tokens.length} tokens.`;
  }

  function pin(index) {
    pinned = index;
    unpin.disabled = index === null;
    show(index);
  }

  function showAll() {
    slider.focus(); // the button is about to be disabled
    pin(null);
  }

  function onKey(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") pin(null);
    if (step === undefined || tokens.length === 0) return;
    event.preventDefault();
    const next = pinned === null ? 0 : Math.min(tokens.length - 1, Math.max(0, pinned + step));
    pin(next);
    spans[next].scrollIntoView({ block: "nearest" });
    announce(aloud(next));
  }

  slider.addEventListener("input", () => tokens.length > 0 && pin(slider.valueAsNumber), { signal: life.signal });
  unpin.addEventListener("click", showAll, { signal: life.signal });
  words.addEventListener("toggle", listWords, { signal: life.signal });
  tellCell(null, null);
  clear();
  return {
    clear,
    follow,
    add,
    /** Shows what has come so far at once: nothing more comes. */
    finish: () => tokens.length > 0 && paint(),
    /** Gives the section up, for the table of another model. */
    close: () => life.abort(),
  };
}

function indexOf(element) {
  const index = element.closest(".token")?.dataset.index;
  return index === undefined ? null : Number(index);
}

function sorted(ids) {
  return [...ids].sort((a, b) => a - b);
}

/** White space that can be seen. */
function visible(text) {
  return text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣");
}
