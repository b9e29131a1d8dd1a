"use strict";
/* The table of rows: search, filters, sorting, and one row in full. Only rows in view are in the document. */
(() => {
  const host = document.getElementById("explorer");
  if (host === null) return;
  const data = gf.read("rows");
  const {make} = gf, at = (id) => document.getElementById(id);
  const PRINTED = 100, WHOLE = 50;  // rows on paper, and with their full texts at a time
  const count = data.id.length, grid = at("grid"), head = at("grid-head"), body = at("grid-body");
  const format = (value, key) => {
    if (value === null || value === undefined) return "–";
    if (key === "stability") return `${Math.round(100 * value)}%`;
    const size = Math.abs(value);
    if (Number.isInteger(value) && size < 1e6) return value.toLocaleString("en");
    return size >= 1e5 || size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  };
  // Control characters, which would be invisible or break lines, as their pictures.
  const visible = (text) => text.replace(/[\u0000-\u0008\u000b-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
    .replace(/\u007f/g, "\u2421");
  const line = (text) => visible(text.slice(0, 200).replace(/\s+/g, " "));

  /* Rows that were added or dropped by hand: id -> true for added, false for dropped. They outlive a reload where the
     browser lets a page store anything. */
  const storage = `gradfiltering ${location.pathname}`;
  const edited = new Map();
  const chosen = new Set(data.selected_ids || []), places = new Map(data.id.map((id, i) => [id, i]));
  try {
    for (const [id, inside] of JSON.parse(localStorage.getItem(storage) || "[]")) if (places.has(id) && chosen.has(id) !== inside) edited.set(id, inside);
  } catch { /* nothing is stored then */ }
  const isIn = (i) => edited.has(data.id[i]) ? edited.get(data.id[i]) : Boolean(data.selected[i]);
  const stateOf = (i) => edited.has(data.id[i]) ? (isIn(i) ? "+ added" : "− dropped") : (isIn(i) ? "✓ selected" : "dropped");

  const MEANINGS = {
    rank: "1 is the best row by its score.", score: "The higher, the sooner a row is taken.",
    relative_drop: "Share by which the row's gradient norm fell from the early to the late snapshot; negative where it rose.",
    variance_late: "Variance of the gradient norm over the members: small where they agree.",
    stability: "Share of ensembles with members drawn anew that would select the row as well.",
    g_early: "Mean gradient norm at the early snapshot.", g_late: "Mean gradient norm at the late snapshot.",
    selected: "Whether the row is in the subset; your changes count.", length: "Length of the response.",
  };

  // What says most stands first; the rest is a scroll away, and all of it in the row's detail.
  const numbers = (keys) => keys.filter((key) => data.numbers[key]).map((key) => {
    const one = data.numbers[key];
    return {key, title: one.title, number: true, size: Math.max(4.4, 0.62 * one.title.length), value: (i) => one.values[i], show: (i) => format(one.values[i], key)};
  });
  const names = (key) => data[key] ? [{key, title: key, size: 6.5, value: (i) => data[key].indices[i], show: (i) => data[key].names[data[key].indices[i]]}] : [];
  const columns = [
    {key: "id", title: "row", number: true, size: 3.6, value: (i) => data.id[i]},
    ...(data.selected ? [{key: "selected", title: "selected", size: 7, value: (i) => Number(isIn(i)), show: stateOf}] : []),
    {key: "prompt", title: "prompt", wide: true, size: 13, value: (i) => index()[i], show: (i) => line(data.prompt[i] || data.response[i] || "")},
    ...numbers(["rank", "score", "relative_drop", "variance_late", "length", "stability"]),
    ...names("kind"), ...names("source"), ...numbers(["g_early", "g_late"]),
  ];

  let lowered = null;
  function index() {
    if (lowered === null) {
      lowered = new Array(count);
      for (let i = 0; i < count; i++) {
        const names = ["source", "kind"].map((key) => data[key] ? data[key].names[data[key].indices[i]] : "").join(" ");
        lowered[i] = `${data.prompt[i] ?? ""}\n${data.response[i] ?? ""}\n${data.id[i]} ${names}`.toLowerCase();
      }
    }
    return lowered;
  }

  const state = {order: Array.from({length: count}, (_, i) => i), shown: [], key: data.numbers.rank ? "rank" : "id", down: false, active: 0, whole: false, most: WHOLE};

  function sort() {
    const column = columns.find((one) => one.key === state.key), sign = state.down ? -1 : 1;
    const values = state.order.map(column.value), place = Array.from({length: count}, (_, i) => i);
    const text = typeof values.find((v) => v !== null) === "string";
    const missing = (v) => v === null || v === undefined;
    place.sort((a, b) => {
      const x = values[a], y = values[b];
      if (missing(x) || missing(y)) return missing(x) - missing(y) || a - b;
      if (x === y) return a - b;
      return text ? sign * (x < y ? -1 : 1) : sign * (x - y);
    });
    return place;
  }
  let sorted = null;

  const counted = () => `${state.shown.length.toLocaleString("en")} of ${count.toLocaleString("en")} rows`;

  function apply() {
    const started = performance.now();
    if (sorted === null) {
      state.order = Array.from({length: count}, (_, i) => i);
      sorted = sort();
    }
    const terms = at("q").value.toLowerCase().split(/\s+/).filter(Boolean);
    const texts = terms.length ? index() : null;
    const selected = at("f-selected") ? at("f-selected").value : "";
    const of = {};
    for (const key of ["source", "kind"]) of[key] = at(`f-${key}`) && at(`f-${key}`).value !== "" ? Number(at(`f-${key}`).value) : null;
    const length = data.numbers.length ? data.numbers.length.values : null;
    const low = at("f-low") && at("f-low").value !== "" ? Number(at("f-low").value) : null;
    const high = at("f-high") && at("f-high").value !== "" ? Number(at("f-high").value) : null;
    state.shown = sorted.filter((i) =>
      (selected === "" || (selected === "unscored" ? i in data.reason : selected === "edited" ? edited.has(data.id[i]) : isIn(i) === (selected === "1")))
      && (of.source === null || data.source.indices[i] === of.source) && (of.kind === null || data.kind.indices[i] === of.kind)
      && (low === null || (length[i] !== null && length[i] >= low)) && (high === null || (length[i] !== null && length[i] <= high))
      && terms.every((term) => texts[i].includes(term)));
    state.active = 0;
    state.most = WHOLE;
    grid.scrollTop = 0;
    at("count").textContent = counted();
    grid.setAttribute("aria-rowcount", String(state.shown.length + 1));
    render();
    host.dataset.milliseconds = String(performance.now() - started);
  }

  const height = () => parseFloat(getComputedStyle(grid).getPropertyValue("--row"));
  const pool = new Map();

  function row(place) {
    const i = state.shown[place], element = make("div", null, "row");
    element.setAttribute("role", "row");
    element.setAttribute("aria-rowindex", String(place + 2));
    element.id = `row-${place}`;
    element.dataset.place = String(place);
    for (const column of columns) {
      const text = column.wide && state.whole ? visible(data.prompt[i] || "") : column.show ? column.show(i) : format(column.value(i), column.key);
      const cell = make("div", column.key === "selected" ? null : text, `cell ${column.key}${column.number ? " n" : ""}`);
      cell.setAttribute("role", "gridcell");
      if (column.key === "selected") {
        cell.append(make("span", text, "toggle"));
        if (at("edits")) cell.title = isIn(i) ? "Click to drop this row" : "Click to add this row";
      }
      if (column.wide && state.whole) cell.append(make("span", visible(data.response[i] || ""), "answer"));
      cell.dataset.title = column.title;
      if (column.wide) cell.dir = "auto";
      element.append(cell);
    }
    if (data.selected && isIn(i)) element.classList.add("selected");
    if (edited.has(data.id[i])) element.classList.add("edited");
    return element;
  }

  function inView(size) {
    const top = grid.scrollTop, space = grid.clientHeight;
    return [Math.max(0, Math.floor(top / size) - 6), Math.ceil((top + space) / size) + 6];
  }

  function render(keep, span) {
    const size = height(), [first, end] = span || (state.whole ? [0, state.most] : inView(size)), last = Math.min(state.shown.length, end);
    grid.classList.toggle("whole", state.whole);
    at("more").hidden = !state.whole || state.shown.length <= state.most;
    body.style.height = `${state.shown.length * size}px`;
    if (!keep) { pool.forEach((element) => element.remove()); pool.clear(); }
    for (const [place, element] of pool) {
      if (place < first || place >= last) { element.remove(); pool.delete(place); }
    }
    for (let place = first; place < last; place++) {
      let element = pool.get(place);
      if (!element) {
        element = row(place);
        pool.set(place, element);
        body.append(element);
      }
      element.style.transform = `translateY(${place * size}px)`;
      const active = place === state.active;
      element.classList.toggle("active", active);
      element.setAttribute("aria-selected", String(active));
    }
    if (pool.has(state.active)) grid.setAttribute("aria-activedescendant", `row-${state.active}`);
    else grid.removeAttribute("aria-activedescendant");
    at("nothing").hidden = state.shown.length > 0;
  }

  function go(place) {
    if (!state.shown.length) return;
    state.active = Math.max(0, Math.min(state.shown.length - 1, place));
    if (state.whole) {
      while (state.active >= state.most) state.most += WHOLE;
      render(true);
      pool.get(state.active).scrollIntoView({block: "nearest"});
      return;
    }
    const size = height(), top = state.active * size, space = grid.clientHeight - head.offsetHeight;
    if (top < grid.scrollTop) grid.scrollTop = top;
    else if (top + size > grid.scrollTop + space) grid.scrollTop = top + size - space;
    render(true);
  }

  function heads() {
    head.replaceChildren();
    const line = make("div", null, "row");
    line.setAttribute("role", "row");
    line.setAttribute("aria-rowindex", "1");
    for (const column of columns) {
      const cell = make("div", null, `cell ${column.key}${column.number ? " n" : ""}`), button = make("button", column.title);
      const here = state.key === column.key;
      cell.setAttribute("role", "columnheader");
      cell.setAttribute("aria-sort", here ? (state.down ? "descending" : "ascending") : "none");
      button.type = "button";
      if (MEANINGS[column.key]) button.dataset.tip = MEANINGS[column.key];
      if (here) button.append(make("span", state.down ? " ↓" : " ↑"));
      button.addEventListener("click", () => by(column.key, here ? !state.down : false));
      cell.append(button);
      line.append(cell);
    }
    head.append(line);
    at("sort").value = state.key;
    at("direction").textContent = state.down ? "↓ falling" : "↑ rising";
  }

  function by(key, down) {
    const focused = head.contains(document.activeElement);
    Object.assign(state, {key, down});
    sorted = null;
    heads();
    apply();
    if (focused) head.querySelectorAll("button")[columns.findIndex((one) => one.key === key)].focus();
  }

  function table(i) {
    const log = data.log, epochs = log.epochs.length, members = log.members.length, start = i * epochs * members;
    if (log.grad_norm[start] === null) return null;
    const wide = make("div", null, "scroll"), made = make("table"), top = make("tr");
    made.append(make("caption", "Gradient norm (and loss, nats) of each member at each epoch"));
    for (const title of [log.unit, ...log.members.map((m) => `member ${m}`), "mean", "variance"]) {
      const cell = make("th", title, title === log.unit ? "" : "n");
      cell.scope = "col";
      top.append(cell);
    }
    made.append(top);
    log.epochs.forEach((epoch, e) => {
      const line = make("tr"), name = make("th", epoch);
      name.scope = "row";
      line.append(name);
      const norms = log.grad_norm.slice(start + e * members, start + (e + 1) * members);
      norms.forEach((norm, m) => {
        const cell = make("td", format(norm), "n");
        cell.append(make("small", ` (${format(log.loss[start + e * members + m])})`, "muted"));
        line.append(cell);
      });
      const mean = norms.reduce((a, b) => a + b, 0) / members;
      line.append(make("td", format(mean), "n"));
      line.append(make("td", members > 1 ? format(norms.reduce((a, b) => a + (b - mean) ** 2, 0) / members) : "–", "n"));
      made.append(line);
    });
    wide.append(made);
    return wide;
  }

  function open() {
    const i = state.shown[state.active];
    if (i === undefined) return;
    const inside = at("detail-body");
    inside.replaceChildren();
    at("detail-title").textContent = `Row ${data.id[i]}`;
    const facts = make("dl", null, "facts");
    for (const column of columns) {
      if (column.key === "id" || column.wide) continue;
      const pair = make("div");
      pair.append(make("dt", column.title), make("dd", column.show(i)));
      facts.append(pair);
    }
    if (data.why) inside.append(make("p", `${data.why[i]}.`, "why"));
    inside.append(facts);
    if (i in data.signs) inside.append(make("p", `Signs of a poor row: ${data.signs[i]}.`, "note"));
    if (i in data.reason) inside.append(make("p", `Not scored: ${data.reason[i]}.`, "note"));
    ["prompt", "response"].forEach((key, place) => {
      inside.append(make("h3", key === "prompt" ? "Prompt" : "Response"));
      const text = make("pre", data[key][i] === null ? "" : visible(data[key][i]), "text");
      text.dir = "auto";
      if (data[key][i] === null) { text.textContent = "not kept by this run"; text.classList.add("muted"); }
      else if (data[key][i] === "") { text.textContent = "empty"; text.classList.add("muted"); }
      inside.append(text);
      if (i in data.cut && data.cut[i][place]) {
        inside.append(make("p", `Cut here: the whole text has ${format(data.cut[i][place])} characters.`, "muted"));
      }
    });
    const norms = data.log ? table(i) : null;
    if (norms) {
      inside.append(make("h3", "What each member saw"), norms);
      norms.tabIndex = 0;
      norms.setAttribute("role", "region");
      norms.setAttribute("aria-label", "Norms of each member");
    }
    inside.scrollTop = 0;
    if (at("toggle")) at("toggle").textContent = isIn(i) ? "Drop from the subset" : "Add to the subset";
    at("previous").disabled = state.active === 0;
    at("next").disabled = state.active === state.shown.length - 1;
    if (!at("detail").open) at("detail").showModal();
  }

  function toggle(i) {
    if (i === undefined || !data.selected || !at("edits")) return;
    const id = data.id[i], inside = !isIn(i);
    if (chosen.has(id) === inside) edited.delete(id); else edited.set(id, inside);
    changed();
  }

  function changed() {
    try { localStorage.setItem(storage, JSON.stringify([...edited])); } catch { /* they last as long as the page, then */ }
    tell();
    if (state.key === "selected") sorted = null;
    render();
  }

  function tell() {
    if (!at("edits")) return;
    const added = [...edited.values()].filter(Boolean).length, dropped = edited.size - added;
    const size = (data.subset_rows ?? chosen.size) + added - dropped, word = (n) => n.toLocaleString("en");
    at("edits").textContent = edited.size
      ? `Changed by hand: ${word(added)} added, ${word(dropped)} dropped; the subset has ${word(size)} rows.`
      : `The subset has ${word(size)} rows. Add or drop rows by hand, and save the result.`;
    at("undo").hidden = edited.size === 0;
  }

  /* A row as JSON, in the order of its fields; texts that the page holds cut say so. */
  function record(i, whole) {
    const entry = {example_id: data.id[i], prompt: data.prompt[i], response: data.response[i]};
    if (i in data.cut) entry.cut = true;
    if (data.source) entry.source = data.source.names[data.source.indices[i]];
    if (!whole) return entry;
    if (data.selected) entry.selected = isIn(i);
    for (const [key, column] of Object.entries(data.numbers)) entry[key] = column.values[i];
    if (data.why) entry.why = data.why[i];
    return entry;
  }

  function save(name, entries) {
    const lines = entries.map((entry) => `${JSON.stringify(entry)}\n`);
    const link = make("a"), url = URL.createObjectURL(new Blob(lines, {type: "application/jsonl"}));
    link.href = url;
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  /* The subset after the changes, by id; of a row that this page does not hold the id alone. */
  function editedSubset() {
    const ids = [...chosen].filter((id) => edited.get(id) !== false);
    for (const [id, inside] of edited) if (inside) ids.push(id);
    return ids.sort((a, b) => a - b).map((id) => places.has(id) ? record(places.get(id), false) : {example_id: id});
  }

  function choices(id, names) {
    const select = at(id);
    if (!select) return;
    names.forEach((name, number) => {
      const option = make("option", name === "" ? "(none)" : name.slice(0, 80));
      option.value = String(number);
      select.append(option);
    });
  }

  function layOut() {
    const size = (one) => one.wide && state.whole ? 30 : one.size;  // rem
    grid.style.setProperty("--columns", columns.map((one) => one.wide ? `minmax(${size(one)}rem, 1fr)` : `${size(one)}rem`).join(" "));
    grid.style.setProperty("--wide", `${columns.reduce((sum, one) => sum + size(one) + 0.7, 1.8)}rem`);
  }

  function start() {
    if (data.source) choices("f-source", data.source.names);
    if (data.kind) choices("f-kind", data.kind.names);
    for (const column of columns) {
      const option = make("option", column.title);
      option.value = column.key;
      at("sort").append(option);
    }
    layOut();
    grid.setAttribute("aria-colcount", String(columns.length));
    heads();
    apply();
    tell();
    for (const element of host.querySelectorAll("[data-filter]")) element.addEventListener("input", apply);
    at("sort").addEventListener("change", () => by(at("sort").value, state.down));
    at("direction").addEventListener("click", () => by(state.key, !state.down));
    at("clear").addEventListener("click", () => {
      for (const element of host.querySelectorAll("[data-filter]")) element.value = "";
      apply();
    });
    at("texts").addEventListener("click", () => {
      state.whole = !state.whole;
      state.most = WHOLE;
      at("texts").setAttribute("aria-pressed", String(state.whole));
      grid.scrollTop = 0;
      layOut();
      render();
    });
    at("more").addEventListener("click", () => { state.most += WHOLE; render(true); });
    at("export").addEventListener("click", () => save("rows.jsonl", state.shown.map((i) => record(i, true))));
    if (at("edits")) {
      at("save-edited").addEventListener("click", () => save("subset_edited.jsonl", editedSubset()));
      at("undo").addEventListener("click", () => { edited.clear(); changed(); at("save-edited").focus(); });
      at("toggle").addEventListener("click", () => { toggle(state.shown[state.active]); open(); });
    }
    let due = false;
    grid.addEventListener("scroll", () => {
      if (due) return;
      due = true;
      requestAnimationFrame(() => { due = false; if (!state.whole) render(true); });
    });
    addEventListener("resize", () => render());
    addEventListener("beforeprint", () => {
      render(false, [0, PRINTED]);
      if (state.shown.length > PRINTED) at("count").textContent = `${counted()}; the first ${PRINTED} follow`;
    });
    addEventListener("afterprint", () => {
      at("count").textContent = counted();
      render();
    });
    body.addEventListener("click", (event) => {
      const element = event.target.closest(".row");
      if (!element) return;
      if (String(getSelection())) return;  // text is being copied
      go(Number(element.dataset.place));
      if (event.target.closest(".toggle")) toggle(state.shown[state.active]);
      else open();
    });
    grid.addEventListener("keydown", (event) => {
      if (event.target !== grid) return;
      const page = Math.max(1, Math.floor(grid.clientHeight / height()) - 2);
      const step = {ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity}[event.key];
      if (step !== undefined) go(step === -Infinity ? 0 : step === Infinity ? state.shown.length - 1 : state.active + step);
      else if (event.key === "Enter") open();
      else if (event.key === "x") toggle(state.shown[state.active]);
      else return;
      event.preventDefault();
    });
    at("previous").addEventListener("click", () => { go(state.active - 1); open(); });
    at("next").addEventListener("click", () => { go(state.active + 1); open(); });
    at("close").addEventListener("click", () => at("detail").close());
    at("detail").addEventListener("close", () => grid.focus({preventScroll: true}));
    at("detail").addEventListener("click", (event) => { if (event.target === at("detail")) at("detail").close(); });
    // The index is made while nobody waits for it, so that the first search is as fast as the others.
    setTimeout(() => { index(); host.dataset.ready = "1"; }, 50);
  }
  start();
})();
