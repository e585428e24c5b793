// The form's fields, as fields of a request.

const ESCAPES = { n: "\n", t: "\t", "\\": "\\" };

/** A field holds what it cannot; `field` is its name. */
export class BadField extends Error {
  constructor(field, message) {
    super(message);
    this.field = field;
  }
}

/** Path and body of the request that the form asks for, and whether it is a chat. Throws BadField. */
export function readRequest(form) {
  const fields = form.elements;
  const prompt = fields.prompt.value;
  if (prompt === "") throw new BadField("prompt", "Type a prompt first.");
  const body = { stream: true };
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    const field = fields[name];
    if (!field.validity.valid) throw new BadField(name, `${labelOf(field)}: ${field.validationMessage}`);
    if (field.value !== "") body[name] = field.valueAsNumber;
  }
  const stop = unescape(fields.stop.value);
  if (stop !== "") body.stop = [stop];
  if (fields.chat.checked) {
    return { path: "v1/chat/completions", body: { ...body, messages: [{ role: "user", content: prompt }] } };
  }
  return { path: "v1/completions", body: { ...body, prompt } };
}

/** The settings in a few words, for when they are folded away. */
export function summary(form) {
  const fields = form.elements;
  const temperature = fields.temperature.valueAsNumber;
  const parts = [`temperature ${fields.temperature.value}`];
  if (temperature > 0 && fields.top_p.valueAsNumber < 1) parts.push(`top p ${fields.top_p.value}`);
  if (temperature > 0 && fields.seed.value !== "") parts.push(`seed ${fields.seed.value}`);
  if (fields.max_tokens.value !== "") parts.push(`up to ${fields.max_tokens.value} tokens`);
  if (fields.stop.value !== "") parts.push(`stop at ${fields.stop.value}`);
  if (fields.chat.checked) parts.push("chat");
  return parts.join(" · ");
}

function labelOf(field) {
  return field.labels[0].firstChild.textContent.trim();
}

/** A line break cannot be typed into a field of one line: \n, \t and \\ stand for what they do elsewhere. */
function unescape(text) {
  return text.replace(/\\([nt\\])/g, (_, letter) => ESCAPES[letter]);
}
