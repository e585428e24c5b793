// The table of experts (rows) and layers (columns): its cells, their heat, and moving through it.

const MANY_LAYERS = 12; // past this there is no room for numbers in the cells
const MANY_EXPERTS = 16; // past this rows are low, and the table scrolls
const PAGE_STEP = 8; // experts that a page key moves by
// Heat (percent) from which a cell's number has to be of the other colour to be legible, in light and dark.
const WHITE_FROM = 88;
const BLACK_FROM = 66;

/**
 * Builds the table in `parent`. `onCell(layer, expert)` is called for the cell that is pointed at or has the focus,
 * and with nulls when none is.
 */
export function createExpertTable(parent, layers, experts, onCell) {
  const table = document.createElement("table");
  table.className = "heat";
  table.setAttribute("role", "grid");
  table.setAttribute("aria-labelledby", "experts-heading");
  table.dataset.layers = layers > MANY_LAYERS ? "many" : "few";
  table.dataset.experts = experts > MANY_EXPERTS ? "many" : "few";
  const cells = fill(table, layers, experts);
  const painted = cells.map((column) => column.map(() => ({ text: "", heat: null }))); // what each cell shows
  let marked = []; // cells of the token that is looked at
  let stop = cells[0][0]; // the one cell that the tab key reaches
  stop.tabIndex = 0;
  parent.replaceChildren(table);

  /** Shows how many of `total` tokens each expert got: `counts[layer][expert]`, the largest of which is `largest`. */
  function paint(counts, total, largest) {
    counts.forEach((column, layer) =>
      column.forEach((count, expert) => {
        const was = painted[layer][expert];
        const text = total === 0 ? "" : percent(count / total);
        const heat = Math.round((100 * count) / Math.max(1, largest));
        const cell = cells[layer][expert];
        if (was.text !== text) cell.textContent = text;
        if (was.heat !== heat) {
          cell.style.setProperty("--heat", `${heat}%`);
          cell.classList.toggle("white-in-light", heat >= WHITE_FROM);
          cell.classList.toggle("black-in-dark", heat >= BLACK_FROM);
        }
        painted[layer][expert] = { text, heat };
      }),
    );
  }

  /** Marks the experts of one token, `chosen[layer]`; none for null. */
  function mark(chosen) {
    for (const cell of marked) {
      cell.classList.remove("chosen");
      cell.removeAttribute("aria-selected");
    }
    marked = chosen === null ? [] : chosen.flatMap((ids, layer) => ids.map((expert) => cells[layer][expert]));
    for (const cell of marked) {
      cell.classList.add("chosen");
      cell.setAttribute("aria-selected", "true");
    }
    table.classList.toggle("one-token", chosen !== null);
  }

  /** Tells of the cell that is pointed at, else of the one that has the focus. */
  function tell(pointed) {
    const cell = pointed ?? document.activeElement.closest(".heat td");
    if (cell === null) onCell(null, null);
    else onCell(cell.cellIndex - 1, cell.parentElement.sectionRowIndex);
  }

  table.addEventListener("pointermove", (event) => {
    // A table that is scrolled by keyboard moves under a pointer that rests.
    if (event.movementX !== 0 || event.movementY !== 0) tell(event.target.closest("td"));
  });
  table.addEventListener("pointerleave", () => tell(null));
  table.addEventListener("focusin", (event) => {
    const cell = event.target.closest("td");
    if (cell === null) return;
    stop.tabIndex = -1;
    stop = cell;
    stop.tabIndex = 0;
    tell(cell);
  });
  table.addEventListener("focusout", () => tell(null));
  table.addEventListener("keydown", (event) => {
    const cell = event.target.closest("td");
    if (cell === null || event.ctrlKey || event.metaKey || event.altKey) return;
    const layer = cell.cellIndex - 1;
    const expert = cell.parentElement.sectionRowIndex;
    const to = {
      ArrowRight: [layer + 1, expert],
      ArrowLeft: [layer - 1, expert],
      ArrowDown: [layer, expert + 1],
      ArrowUp: [layer, expert - 1],
      Home: [0, expert],
      End: [layers - 1, expert],
      PageDown: [layer, Math.min(experts - 1, expert + PAGE_STEP)],
      PageUp: [layer, Math.max(0, expert - PAGE_STEP)],
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    cells[to[0]]?.[to[1]]?.focus();
  });

  return { paint, mark };
}

export function percent(share) {
  return `${Math.round(100 * share)}%`;
}

/** Headings and cells; returns the cells as [layer][expert]. */
function fill(table, layers, experts) {
  const head = table.createTHead().insertRow();
  head.append(heading("Expert", "col", "corner"));
  for (let layer = 0; layer < layers; layer++) head.append(heading(layer, "col", "", `Layer ${layer}`));
  const cells = Array.from({ length: layers }, () => []);
  const body = table.createTBody();
  for (let expert = 0; expert < experts; expert++) {
    const row = body.insertRow();
    const name = experts > MANY_EXPERTS && expert % 4 !== 0 ? "" : expert; // low rows have no room for every number
    row.append(heading(name, "row", "", `Expert ${expert}`));
    for (let layer = 0; layer < layers; layer++) {
      const cell = row.insertCell();
      cell.tabIndex = -1;
      cells[layer].push(cell);
    }
  }
  table.createCaption().textContent = "Layer";
  return cells;
}

function heading(text, scope, className, label) {
  const th = document.createElement("th");
  th.scope = scope;
  th.textContent = text;
  if (className) th.className = className;
  if (label) th.setAttribute("aria-label", label);
  return th;
}
