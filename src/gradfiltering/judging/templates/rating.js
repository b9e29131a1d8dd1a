"use strict";
const at = (id) => document.getElementById(id);
let shown = null, token = "", busy = false;

// Answers are set as text, never as markup.
function show(state) {
  shown = state.shown;
  token = state.csrf_token;
  at("login-page").hidden = true;
  at("rating").hidden = shown === null;
  at("done").hidden = shown !== null;
  at("bar").max = state.total;
  at("bar").value = state.done;
  at("progress").textContent = `${state.done} of ${state.total} rated by ${state.rater}`;
  at("undo").disabled = state.done === 0;
  at("resume").href = `./?rater=${encodeURIComponent(state.rater)}`;
  if (shown !== null) {
    for (const place of ["question", "left", "right"]) at(place).textContent = shown[place];
    window.scrollTo(0, 0);
    if (state.done === 0 && !show.explained) help();
    show.explained = true;
  }
}

const help = () => { if (!at("instructions").open) at("instructions").showModal(); };

async function call(path, body) {
  const options = body === undefined ? {} :
    { method: "POST", headers: { "Content-Type": "application/json", "X-CSRF-Token": token }, body: JSON.stringify(body) };
  return fetch(path, options);
}

async function refresh() {
  const reply = await call("api/state");
  if (reply.ok) return show(await reply.json());
  at("login-page").hidden = false;
  at("rating").hidden = true;
  at("rater").value = new URLSearchParams(location.search).get("rater") || at("rater").value;
  at(at("rater").value ? "password" : "rater").focus();
}

async function send(path, body) {
  if (busy) return;
  busy = true;  // one keystroke, one rating
  try {
    const reply = await call(path, body);
    if (reply.status === 401) await refresh();
    else if (!reply.ok) throw new Error(reply.status);
    else { at("problem").textContent = ""; show(await reply.json()); }
  } catch (error) {
    at("problem").textContent = `Not saved (${error.message}). Is the program still running? Try again.`;
  } finally {
    busy = false;
  }
}
const rate = (choice) => { if (shown !== null) send("api/rate", { pair: shown.pair, choice }); };
const skip = () => { if (shown !== null) send("api/skip", { pair: shown.pair }); };
const undo = () => { if (at("bar").value > 0) send("api/undo", {}); };

at("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const reply = await call("api/login", { rater: at("rater").value, password: at("password").value });
  at("refused").textContent = reply.ok ? "" : (await reply.json()).error;
  if (reply.ok) refresh();
});
at("logout").addEventListener("click", async () => { await call("api/logout", {}); location.reload(); });
at("undo").addEventListener("click", undo);
at("undo-last").addEventListener("click", undo);
at("skip").addEventListener("click", skip);
at("help").addEventListener("click", help);
for (const button of document.querySelectorAll("[data-choice]")) {
  button.addEventListener("click", () => rate(button.dataset.choice));
}
document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || at("rating").hidden || at("instructions").open) return;
  if (event.key === " " && event.target.closest("button")) return;  // presses the button that has the focus
  const choice = { 1: "left", ArrowLeft: "left", 2: "tie", " ": "tie", 3: "right", ArrowRight: "right", 4: "bad" }[event.key];
  const action = { u: undo, s: skip, "?": help }[event.key];
  if (choice) { event.preventDefault(); rate(choice); }
  else if (action) { event.preventDefault(); action(); }
});
refresh();
