// What is known of the server: its facts, whether it answers, and the key that it asks for.

const RETRY_MS = 1500;

const WORDS = {
  loading: "Loading the model",
  draining: "Shutting down",
  stopped: "Shutting down",
  dead: "The engine has failed",
};

/** Shows in the header whether the server answers. */
export function createStatus(element, health) {
  function show(state, words) {
    element.dataset.state = state;
    element.firstElementChild.textContent = words;
  }

  return {
    ready: () => show("ready", "Ready"),
    busy: () => show("busy", "Working"),
    refused: () => show("gone", "Refused"),

    /** Says why the server does not answer, for as long as it does not. */
    async untilReady() {
      for (let said = await health(); said !== "ready"; said = await health()) {
        show(said === "loading" ? "waiting" : "gone", WORDS[said] ?? "No server");
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      }
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

/** What a visitor has to know of the model. */
export function modelLine(facts) {
  const parts = [
    `${facts.model} is a language model, served by moejax. Each of its ${facts.num_layers} layers has ` +
      `${facts.num_experts} experts, of which ${facts.experts_per_token} work on a token (a word or a piece of one).`,
  ];
  if (facts.about !== null) parts.push(facts.about);
  if (/[2-9]|1\d/.test(facts.mesh)) parts.push(`It is split over devices: ${facts.mesh}.`);
  return parts.join(" ");
}
