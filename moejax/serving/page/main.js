// Puts the page together: the form, the answer, the race, the experts, and what is said when something fails.

import { ApiError, connect, ServerGone } from "./api.js";
import { createHeatmap } from "./heatmap.js";
import { createLane } from "./lane.js";
import { race } from "./race.js";
import { formatRate } from "./run.js";
import { createStatus, keyDialog, modelLine } from "./server.js";
import { BadField, readRequest, summary } from "./settings.js";

const $ = (id) => document.getElementById(id);
const form = $("composer");
const buttons = { generate: $("generate"), race: $("race"), stop: $("stop-button") };
const api = connect(keyDialog($("key-dialog")));
const status = createStatus($("server-status"), api.healthy);

let facts = null; // of the model; null until the server has told them
let heatmap = null;
let running = null; // the AbortController of what runs
let lanes = []; // of the latest answer

function announce(text) {
  $("announcer").textContent = text;
}

function complain(text) {
  $("alert").hidden = text === null;
  $("alert").textContent = text ?? "";
}

function updateButtons() {
  buttons.generate.disabled = running !== null || facts === null;
  buttons.race.disabled = running !== null || !facts?.baseline.available;
  buttons.stop.disabled = running === null;
}

function updateSummary() {
  $("settings-summary").textContent = summary(form);
}

/** Reads what the server says of its model, as soon as it says so. */
async function learnFacts() {
  try {
    facts = await api.get("v1/moejax/info");
  } catch (error) {
    if (error instanceof ServerGone) return status.gone().then(learnFacts);
    if (error instanceof ApiError && error.status === 503) return status.gone("Starting").then(learnFacts);
    if (error instanceof ApiError) return complain(`The server refuses to describe its model: ${error.message}`);
    throw error;
  }
  $("model-facts").textContent = modelLine(facts);
  heatmap = createHeatmap($("experts"), facts, announce);
  form.elements.max_tokens.max = facts.max_seq_len;
  form.elements.chat.disabled = !facts.has_chat;
  $("chat-note").textContent = facts.has_chat ? "" : "this checkpoint has no chat template";
  $("race-note").textContent = facts.baseline.available
    ? `Race runs the same prompt on moejax, then on ${facts.baseline.name} (${facts.baseline.reason}).`
    : `No race: ${facts.baseline.reason}.`;
  status.ready();
  updateButtons();
}

/** Clears the answer and makes a pane for each of `descriptions`; their texts continue `prompt`. */
function openLanes(descriptions, prompt) {
  complain(null);
  $("verdict").hidden = true;
  $("results").hidden = false;
  $("lanes").replaceChildren();
  $("lanes").dataset.count = descriptions.length;
  lanes = descriptions.map((description) => createLane($("lanes"), { ...description, prompt }));
  heatmap.reset(lanes[0]);
}

async function generate(request, signal) {
  const [lane] = lanes;
  const body = { ...request.body, return_routed_experts: true }; // not in a race: reporting them takes time
  lane.begin();
  for await (const chunk of api.stream(request.path, body, signal)) heatmap.add(lane.take(chunk));
  lane.end("done");
  const why = lane.run.finishReason === "stop" ? "it came to its end" : "the limit of tokens is reached";
  lane.say(why);
  announce(`Finished: ${lane.run.tokens.length} tokens, ${formatRate(lane.run.rate)} tokens per second; ${why}.`);
}

async function runRace(request, signal) {
  const [ours, baseline] = lanes;
  await race(api, request, { ours, baseline }, $("verdict"), signal);
}

/** Runs `task` with the form's request, one at a time, and says what went wrong. */
async function run(task, describeLanes) {
  if (running !== null) return;
  let request;
  for (const field of form.elements) field.removeAttribute("aria-invalid");
  try {
    request = readRequest(form);
  } catch (error) {
    if (!(error instanceof BadField)) throw error;
    return pointAt(error);
  }
  const asked = { ...request, body: { model: facts.model, ...request.body, return_progress: true } };
  running = new AbortController();
  updateButtons();
  openLanes(describeLanes(request.body.max_tokens ?? facts.max_seq_len), request.body.prompt ?? "");
  status.busy("Working");
  announce("Working");
  try {
    await task(asked, running.signal);
    status.ready();
  } catch (error) {
    explain(error);
  } finally {
    running = null;
    updateButtons();
  }
}

function pointAt(error) {
  const field = form.elements[error.field];
  if (error.field !== "prompt") $("settings").open = true;
  field.setAttribute("aria-invalid", "true");
  field.focus();
  complain(error.message);
}

function explain(error) {
  const stopped = error.name === "AbortError";
  for (const lane of lanes) if (!lane.run.ended) lane.end(stopped ? "stopped" : "failed");
  if (stopped) {
    announce("Stopped");
    status.ready();
  } else if (error instanceof ServerGone) {
    complain("The server stopped answering. What had arrived is kept below; this page waits for the server.");
    status.gone().then(() => complain("The server answers again."));
  } else if (error instanceof ApiError) {
    complain(`The server could not do this: ${error.message}`);
    status.ready();
  } else {
    complain(`This page failed: ${error.message}`);
    throw error;
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  run(generate, (most) => [{ name: "moejax", note: "", most }]);
});
buttons.race.addEventListener("click", () =>
  run(runRace, (most) => [
    { name: "moejax", note: "continuous batching, one compiled step", most },
    { name: facts.baseline.name, note: "runs when moejax is done", most },
  ]),
);
buttons.stop.addEventListener("click", () => running?.abort());
form.addEventListener("input", updateSummary);
form.elements.prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});

updateSummary();
updateButtons();
learnFacts();
