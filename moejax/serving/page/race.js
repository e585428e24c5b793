// The race: the same request to moejax and then to the baseline, each alone on the machine and on its own clock.

import { formatRate, formatSeconds } from "./run.js";

const RETRY_MS = 500;
const SMALL = 1e8; // parameters below which a step is mostly what surrounds its products

/** Runs both, one after the other; `verdict` says what is going on, and in the end who won. */
export async function race(api, request, { ours, baseline, parameters }, verdict, announce, signal) {
  function report(text) {
    verdict.replaceChildren(paragraph("plain", text));
    announce(text);
  }

  verdict.hidden = false;
  try {
    report(`${ours.name} runs now, then ${baseline.name}.`);
    ours.begin();
    for await (const chunk of api.stream(request.path, request.body, signal)) ours.take(chunk);
    ours.end("done");
    for await (const chunk of fromBaseline(api, request, report, signal)) {
      const status = chunk.moejax?.status;
      if (status === "running") {
        report(`${baseline.name} runs now.`);
        baseline.say(chunk.moejax.description);
        baseline.begin();
      } else if (status) {
        report(`The race waits: ${status}. This is on no clock.`);
      }
      baseline.take(chunk);
    }
    baseline.end("done");
  } catch (error) {
    verdict.replaceChildren(paragraph("plain", "The race did not come to its end."));
    throw error;
  }
  announce(showVerdict(verdict, ours, baseline, parameters));
}

/** The baseline's chunks. It runs one race at a time: the end of another one is waited for. */
async function* fromBaseline(api, request, report, signal) {
  const path = request.path.replace("v1/", "v1/moejax/baseline/");
  while (true) {
    try {
      return yield* api.stream(path, request.body, signal);
    } catch (error) {
      if (error.code !== "baseline_busy") throw error;
    }
    report("The race waits: another one is being run. This is on no clock.");
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    signal.throwIfAborted();
  }
}

/** Who was how many times as fast, by tokens per second of their clocks. */
export function compare(ours, theirs) {
  const ratio = ours.rate / theirs.rate;
  return ratio >= 1 ? { first: true, ratio } : { first: false, ratio: 1 / ratio };
}

/** Where two answers part: null if they do not, else the number of the first different token. */
export function partingToken(ours, theirs) {
  const length = Math.max(ours.length, theirs.length);
  for (let place = 0; place < length; place++) if (ours[place]?.id !== theirs[place]?.id) return place + 1;
  return null;
}

/** Fills `verdict`; returns what it says, in a sentence. */
function showVerdict(verdict, ours, baseline, parameters) {
  const [a, b] = [ours.run, baseline.run];
  const names = [ours.name, baseline.name];
  if (a.rate === null || b.rate === null) {
    const nothing = "There is nothing to compare: an answer is empty.";
    verdict.replaceChildren(paragraph("plain", nothing));
    return nothing;
  }
  const { first, ratio } = compare(a, b);
  const digits = ratio < 10 ? ratio.toFixed(1) : Math.round(ratio);
  const [winner, loser] = first ? names : [names[1], names[0]];
  const claim =
    digits === "1.0" ? `${winner} and ${loser} were equally fast.` : `${winner} was ${digits} times as fast as ${loser}.`;
  verdict.replaceChildren(
    paragraph("ratio", `${digits}×`),
    paragraph("claim", claim),
    paragraph("details", details(names, a, b)),
    bars(names, [a.rate, b.rate]),
    paragraph("caveat", caveat(parameters)),
  );
  return claim;
}

function details(names, a, b) {
  const side = (name, run) => `${name}: ${run.tokens.length} tokens in ${formatSeconds(run.seconds)}`;
  const parts = partingToken(a.tokens, b.tokens);
  const same =
    parts === null ? "Both wrote the same tokens." : `Their tokens are the same before token ${parts}, and differ there.`;
  return `${side(names[0], a)}; ${side(names[1], b)}. ${same}`;
}

/** What the number of times does not say. */
function caveat(parameters) {
  const once = "Each answer was timed once, with whatever else this machine was doing; moejax bench compare repeats it in turns.";
  if (parameters >= SMALL) return once;
  const size = `${(parameters / 1e6).toPrecision(2)} M parameters`;
  return `${once} With ${size}, most of a step is not the model's own work: a large model's ratio is another.`;
}

function bars(names, rates) {
  const list = document.createElement("ul");
  list.className = "bars";
  names.forEach((name, place) => {
    const item = list.appendChild(document.createElement("li"));
    const bar = document.createElement("span");
    bar.className = "bar";
    bar.style.setProperty("--part", `${(100 * rates[place]) / Math.max(...rates)}%`);
    item.append(paragraph("bar-name", name), bar, paragraph("bar-rate", `${formatRate(rates[place])} tokens/s`));
  });
  return list;
}

function paragraph(className, text) {
  const p = document.createElement("p");
  p.className = className;
  p.textContent = text;
  return p;
}
