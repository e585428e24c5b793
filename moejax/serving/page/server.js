// What is known of the server: its facts, whether it answers, and the key that it asks for.

const RETRY_MS = 1500;

/** Shows in the header whether the server answers; after a failure it asks until the server is back. */
export function createStatus(element, healthy) {
  let asking = false;

  function show(state, words) {
    element.dataset.state = state;
    element.firstElementChild.textContent = words;
  }

  return {
    ready: () => show("ready", "Ready"),
    busy: (words) => show("busy", words),

    /** Says in a few words why there is no server, and resolves when it answers again. */
    async gone(words = "No server") {
      show("gone", words);
      if (asking) return new Promise(() => {}); // the first caller goes on
      asking = true;
      do await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      while (!(await healthy()));
      asking = false;
      show("ready", "Ready");
    },
  };
}

/** Asks for the API key; resolves to it, or to null when the user cancels. */
export function keyDialog(dialog) {
  return (rejected) =>
    new Promise((resolve) => {
      const field = dialog.querySelector("#key");
      field.value = "";
      dialog.querySelector("#key-heading").textContent = rejected
        ? "The server does not accept this key"
        : "This server asks for its API key";
      dialog.returnValue = "cancel"; // what Escape leaves
      dialog.addEventListener("close", () => resolve(dialog.returnValue === "use" ? field.value : null), {
        once: true,
      });
      dialog.showModal();
    });
}

/** One line on the model. */
export function modelLine(facts) {
  const parts = [
    facts.model,
    `${facts.num_layers} layers`,
    `${facts.experts_per_token} of ${facts.num_experts} experts per token`,
    `up to ${facts.max_seq_len.toLocaleString("en")} tokens`,
  ];
  if (facts.mesh && /[2-9]|1\d/.test(facts.mesh)) parts.push(`mesh ${facts.mesh}`);
  return parts.join(" · ");
}
