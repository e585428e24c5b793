// The race: the same request to moejax and then to the baseline, each alone on the machine and on its own clock.

import { formatRate, formatSeconds } from "./run.js";

/** Runs both, one after the other; fills `verdict` when both have come to their end. */
export async function race(api, request, { ours, baseline }, verdict, signal) {
  verdict.hidden = true;
  ours.begin();
  await follow(api.stream(request.path, request.body, signal), ours);
  baseline.say("waiting for its process");
  for await (const chunk of api.stream(request.path.replace("v1/", "v1/moejax/baseline/"), request.body, signal)) {
    if (chunk.moejax?.status === "running") {
      baseline.say(chunk.moejax.description);
      baseline.begin();
    } else if (chunk.moejax?.status) {
      baseline.say(`${chunk.moejax.status}; its clock has not begun`);
    }
    baseline.take(chunk);
  }
  baseline.end("done");
  showVerdict(verdict, ours, baseline);
}

async function follow(chunks, lane) {
  for await (const chunk of chunks) lane.take(chunk);
  lane.end("done");
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

function showVerdict(verdict, ours, baseline) {
  const [a, b] = [ours.run, baseline.run];
  const names = [ours, baseline].map((lane) => lane.root.querySelector("h3").textContent);
  if (a.rate === null || b.rate === null) {
    verdict.replaceChildren(paragraph("plain", "There is nothing to compare: an answer is empty."));
  } else {
    const { first, ratio } = compare(a, b);
    const digits = ratio < 10 ? ratio.toFixed(1) : Math.round(ratio);
    const [winner, loser] = first ? names : [names[1], names[0]];
    verdict.replaceChildren(
      paragraph("ratio", `${digits}×`),
      paragraph("claim", `${winner} was ${digits} times as fast as ${loser}.`),
      paragraph("details", details(names, a, b)),
      bars(names, [a.rate, b.rate]),
    );
  }
  verdict.hidden = false;
}

function details(names, a, b) {
  const parts = partingToken(a.tokens, b.tokens);
  const same = parts === null ? "The same tokens." : `Their tokens differ from token ${parts} on.`;
  const side = (name, run) => `${name}: ${run.tokens.length} tokens in ${formatSeconds(run.seconds)}`;
  return `${side(names[0], a)}; ${side(names[1], b)}. ${same}`;
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
