// Which experts the tokens of an answer used: totals per layer, or the experts of one token.

/** The table and its picker, for a model of `num_layers` layers with `num_experts` experts each. */
export function createHeatmap(section, facts, announce) {
  const { num_layers: layers, num_experts: experts, experts_per_token: perToken } = facts;
  const slider = section.querySelector("#token");
  const route = section.querySelector("#token-route");
  const unpin = section.querySelector("#unpin");
  const cells = buildTable(section.querySelector("#experts-grid"), layers, experts);
  section.querySelector("#experts-note").textContent =
    `In every layer ${perToken} of ${experts} experts work on each token. A cell is the share of this answer's tokens ` +
    `on which an expert worked; ${percent(perToken / experts)} everywhere would be even. ` +
    "Point at a token of the answer, or choose it here, to see the experts that wrote it.";

  let tokens = [];
  let counts = [];
  let spans = []; // that show them
  let pinned = null;
  let dirty = false;

  /** Forgets the last answer; the next one is shown in a pane with this `text` and the `spans` of its tokens. */
  function reset(pane) {
    const { text } = pane;
    tokens = [];
    spans = pane.spans;
    counts = Array.from({ length: layers }, () => new Array(experts).fill(0));
    text.addEventListener("pointerover", (event) => preview(indexOf(event.target)));
    text.addEventListener("pointerleave", () => preview(null));
    text.addEventListener("click", (event) => pin(indexOf(event.target)));
    text.addEventListener("keydown", onKey);
    pin(null);
    section.hidden = true;
  }

  function add(added) {
    for (const token of added) {
      tokens.push(token);
      token.experts?.forEach((chosen, layer) => chosen.forEach((expert) => (counts[layer][expert] += 1)));
    }
    if (added.some((token) => token.experts)) section.hidden = false;
    slider.max = Math.max(0, tokens.length - 1);
    if (pinned === null) route.textContent = totalsLine();
    if (!dirty) requestAnimationFrame(paintTotals);
    dirty = true;
  }

  function paintTotals() {
    dirty = false;
    const routed = tokens.filter((token) => token.experts).length;
    const largest = Math.max(1, ...counts.flat());
    counts.forEach((row, layer) =>
      row.forEach((count, expert) => {
        const cell = cells[layer][expert];
        const share = routed === 0 ? 0 : count / routed;
        cell.textContent = routed === 0 ? "" : percent(share);
        cell.title = `layer ${layer}, expert ${expert}: ${count} of ${routed} tokens`;
        cell.style.setProperty("--heat", `${Math.round((100 * count) / largest)}%`);
        cell.classList.toggle("hot", count > 0.55 * largest);
      }),
    );
  }

  function show(index) {
    const chosen = index === null ? null : tokens[index].experts;
    section.classList.toggle("one-token", chosen !== null);
    cells.forEach((row, layer) =>
      row.forEach((cell, expert) => cell.classList.toggle("chosen", chosen?.[layer].includes(expert) ?? false)),
    );
    spans.forEach((span, place) => span.classList.toggle("picked", place === index));
    route.textContent = index === null ? totalsLine() : describe(index);
    slider.setAttribute("aria-valuetext", index === null ? "none chosen" : describe(index));
    if (index !== null) slider.value = index;
  }

  function totalsLine() {
    return `The table shows all ${tokens.length} tokens.`;
  }

  function describe(index) {
    const { text: written, experts: chosen } = tokens[index];
    const name = `Token ${index + 1} of ${tokens.length}, “${visible(written)}”`;
    if (chosen === null) return `${name}: the server did not say which experts wrote it.`;
    const parts = chosen.map((ids, layer) => `layer ${layer}: ${[...ids].sort((a, b) => a - b).join(", ")}`);
    return `${name} – experts of ${parts.join("; ")}.`;
  }

  function preview(index) {
    show(index ?? pinned);
  }

  function pin(index) {
    pinned = index;
    unpin.disabled = index === null;
    show(index);
  }

  function onKey(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") pin(null);
    if (step === undefined || tokens.length === 0) return;
    event.preventDefault();
    const next = pinned === null ? 0 : Math.min(tokens.length - 1, Math.max(0, pinned + step));
    pin(next);
    spans[next].scrollIntoView({ block: "nearest" });
    announce(describe(next));
  }

  slider.addEventListener("input", () => tokens.length > 0 && pin(slider.valueAsNumber));
  unpin.addEventListener("click", () => pin(null));
  return { reset, add };
}

/** A table of experts (rows) and layers (columns); returns its cells as [layer][expert]. */
function buildTable(parent, layers, experts) {
  const table = document.createElement("table");
  table.className = layers > 12 ? "heat dense" : "heat";
  table.style.setProperty("--layers", layers);
  const head = table.createTHead().insertRow();
  head.append(header("Expert", "col", "corner"));
  for (let layer = 0; layer < layers; layer++) head.append(header(layer, "col", "", `Layer ${layer}`));
  const cells = Array.from({ length: layers }, () => []);
  const body = table.createTBody();
  for (let expert = 0; expert < experts; expert++) {
    const row = body.insertRow();
    row.append(header(expert, "row", "", `Expert ${expert}`));
    for (let layer = 0; layer < layers; layer++) cells[layer].push(row.insertCell());
  }
  const caption = table.createCaption();
  caption.textContent = "Layer";
  parent.replaceChildren(table);
  return cells;
}

function header(text, scope, className, label) {
  const th = document.createElement("th");
  th.scope = scope;
  th.textContent = text;
  if (className) th.className = className;
  if (label) th.setAttribute("aria-label", label);
  return th;
}

function indexOf(element) {
  const index = element.closest(".token")?.dataset.index;
  return index === undefined ? null : Number(index);
}

/** White space that can be seen. */
function visible(text) {
  return text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣");
}

function percent(share) {
  return `${Math.round(100 * share)}%`;
}
