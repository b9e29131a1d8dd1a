"use strict";
const at = (id) => document.getElementById(id);
let shown = null, token = "", busy = false;

// Answers are set as text, never as markup.
function show(state) {
  shown = state.shown;
  token = state.csrf_token;
  at("login").hidden = true;
  at("rating").hidden = shown === null;
  at("done").hidden = shown !== null;
  at("bar").max = state.total;
  at("bar").value = state.done;
  at("progress").textContent = `${state.done} of ${state.total} rated by ${state.rater}`;
  if (shown !== null) {
    for (const place of ["question", "left", "right"]) at(place).textContent = shown[place];
    window.scrollTo(0, 0);
  }
}

async function call(path, body) {
  const options = body === undefined ? {} :
    { method: "POST", headers: { "Content-Type": "application/json", "X-CSRF-Token": token }, body: JSON.stringify(body) };
  return fetch(path, options);
}

async function refresh() {
  const reply = await call("api/state");
  if (reply.ok) show(await reply.json());
  else { at("login").hidden = false; at("rating").hidden = true; at("rater").focus(); }
}

async function rate(choice) {
  if (busy || shown === null) return;
  busy = true;  // one keystroke, one rating
  try {
    const reply = await call("api/rate", { pair: shown.pair, choice });
    if (reply.status === 401) await refresh();
    else if (!reply.ok) throw new Error(reply.status);
    else { at("problem").textContent = ""; show(await reply.json()); }
  } catch (error) {
    at("problem").textContent = `Not saved (${error.message}). Is the program still running? Try again.`;
  } finally {
    busy = false;
  }
}

at("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const reply = await call("api/login", { rater: at("rater").value, password: at("password").value });
  at("refused").textContent = reply.ok ? "" : (await reply.json()).error;
  if (reply.ok) refresh();
});
at("logout").addEventListener("click", async () => { await call("api/logout", {}); location.reload(); });
for (const button of document.querySelectorAll("[data-choice]")) {
  button.addEventListener("click", () => rate(button.dataset.choice));
}
document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || at("rating").hidden) return;
  const choice = { 1: "left", ArrowLeft: "left", 2: "tie", " ": "tie", 3: "right", ArrowRight: "right" }[event.key];
  if (choice) { event.preventDefault(); rate(choice); }
});
refresh();
