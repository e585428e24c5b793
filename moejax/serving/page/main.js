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
const status = createStatus($("server-status"), api.health);

let facts = null; // of the model; null until the server has told them
let heatmap = null;
let meeting = null; // the promise of a server that answers; null while one does
let running = null; // the AbortController of what runs
let pressed = null; // the button that had the focus when it started what runs
let lanes = []; // of the latest answer

function announce(text) {
  $("announcer").textContent = text;
}

function complain(text) {
  $("alert").textContent = text ?? "";
}

/** A button that becomes disabled loses the focus: then it goes to the one that can be used next. */
function updateButtons() {
  const busy = running !== null;
  const focused = document.activeElement;
  if (busy && (focused === buttons.generate || focused === buttons.race)) pressed = focused;
  buttons.stop.disabled = !busy && focused !== buttons.stop;
  if (busy && pressed !== null) buttons.stop.focus();
  const able = !busy && meeting === null && facts !== null;
  buttons.generate.disabled = !able;
  buttons.race.disabled = !able || !facts.baseline.available;
  if (busy) return;
  if (focused === buttons.stop) (pressed === null || pressed.disabled ? form.elements.prompt : pressed).focus();
  pressed = null;
  buttons.stop.disabled = true;
}

function updateSummary() {
  $("settings-summary").textContent = summary(form);
}

/** Waits for a server that answers, and reads what it says of its model. However often it is called, it runs once. */
function meetServer() {
  meeting ??= learnFacts().finally(() => {
    meeting = null;
    updateButtons();
  });
  updateButtons();
}

async function learnFacts() {
  for (let waited = false; ; waited = true) {
    try {
      const told = await api.get("v1/moejax/info");
      if (JSON.stringify(told) !== JSON.stringify(facts)) adopt(told); // else what is on the page stays there
      if (waited) complain(null);
      if (waited) announce("The server is ready.");
      return status.ready();
    } catch (error) {
      if (error instanceof ApiError && error.status !== 503) return refused(error);
      if (!(error instanceof ApiError || error instanceof ServerGone)) throw error;
    }
    await status.untilReady();
  }
}

function refused(error) {
  status.refused();
  const advice = error.status === 401 ? "Reload this page to be asked for the key again." : error.message;
  complain(`The server does not describe its model. ${advice}`);
}

function adopt(told) {
  facts = told;
  $("model-facts").textContent = modelLine(facts);
  heatmap?.close();
  heatmap = createHeatmap($("experts"), facts, announce);
  form.elements.max_tokens.max = facts.max_seq_len;
  form.elements.chat.disabled = !facts.has_chat;
  $("chat-note").textContent = facts.has_chat
    ? "the prompt is a message to answer"
    : "this checkpoint has no chat template";
  const { available, name, reason } = facts.baseline;
  const bold = Object.assign(document.createElement("b"), { textContent: "Race" });
  $("race-note").replaceChildren(
    ...(available
      ? [bold, ` gives the prompt to moejax, then to ${name} (${reason}), and times each of them alone.`]
      : [`There is no race: ${reason}.`]),
  );
}

/** Clears the answer and makes a pane for each of `descriptions`; their texts continue `prompt`. */
function openLanes(descriptions, prompt) {
  complain(null);
  $("verdict").hidden = true;
  $("results").hidden = false;
  $("lanes").replaceChildren();
  $("lanes").dataset.count = descriptions.length;
  lanes = descriptions.map((description) => createLane($("lanes"), { ...description, prompt }));
  heatmap.clear();
}

async function generate(request, signal) {
  const [lane] = lanes;
  const body = { ...request.body, return_routed_experts: true };
  announce("Working");
  heatmap.follow(lane);
  lane.begin();
  for await (const chunk of api.stream(request.path, body, signal)) heatmap.add(lane.take(chunk));
  lane.end("done");
  const why = lane.run.finishReason === "stop" ? "the text came to its end" : "the limit of tokens is reached";
  lane.say(why);
  announce(`Finished: ${lane.run.tokens.length} tokens, ${formatRate(lane.run.rate)} tokens per second; ${why}.`);
}

async function runRace(request, signal) {
  const [ours, baseline] = lanes;
  const sides = { ours, baseline, parameters: facts.parameters };
  await race(api, request, sides, $("verdict"), announce, signal);
}

/** Runs `task` with the form's request, one at a time, and says what went wrong. */
async function run(task, describeLanes) {
  if (running !== null || meeting !== null) return;
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
  status.busy();
  try {
    await task(asked, running.signal);
    status.ready();
  } catch (error) {
    explain(error);
  } finally {
    heatmap.finish();
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
    meetServer();
  } else if (error instanceof ApiError) {
    complain(`The server could not do this: ${error.message}`);
    status.ready();
    if (error.status === 503) meetServer(); // is it the whole server that fails, or the baseline alone?
  } else {
    complain(`This page failed: ${error.message}`);
    throw error;
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  run(generate, (most) => [{ name: facts.model, note: "", most }]);
});
buttons.race.addEventListener("click", () =>
  run(runRace, (most) => [
    { name: "moejax", note: `this server, ${facts.dtype}, ${facts.platform}`, most },
    { name: facts.baseline.name, note: "", most },
  ]),
);
buttons.stop.addEventListener("click", () => running?.abort());
form.addEventListener("input", updateSummary);
form.elements.prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});

updateSummary();
meetServer();
