"use strict";
/* The table of rows: search, filters, sorting, and one row in full. Only rows in view are in the document. */
(() => {
  const host = document.getElementById("explorer");
  if (host === null) return;
  const data = gf.read("rows");
  const {make} = gf, at = (id) => document.getElementById(id);
  const PRINTED = 100;  // rows on paper
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

  // What says most stands first; the rest is a scroll away, and all of it in the row's detail.
  const numbers = (keys) => keys.filter((key) => data.numbers[key]).map((key) => {
    const one = data.numbers[key];
    return {key, title: one.title, number: true, size: Math.max(4.4, 0.62 * one.title.length), value: (i) => one.values[i], show: (i) => format(one.values[i], key)};
  });
  const names = (key) => data[key] ? [{key, title: key, size: 6.5, value: (i) => data[key].indices[i], show: (i) => data[key].names[data[key].indices[i]]}] : [];
  const columns = [
    {key: "id", title: "row", number: true, size: 3.6, value: (i) => data.id[i]},
    ...(data.selected ? [{key: "selected", title: "selected", size: 6.4, value: (i) => data.selected[i], show: (i) => data.selected[i] ? "✓ selected" : "dropped"}] : []),
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

  const state = {order: Array.from({length: count}, (_, i) => i), shown: [], key: data.numbers.rank ? "rank" : "id", down: false, active: 0};

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
      (selected === "" || (selected === "unscored" ? i in data.reason : data.selected[i] === Number(selected)))
      && (of.source === null || data.source.indices[i] === of.source) && (of.kind === null || data.kind.indices[i] === of.kind)
      && (low === null || (length[i] !== null && length[i] >= low)) && (high === null || (length[i] !== null && length[i] <= high))
      && terms.every((term) => texts[i].includes(term)));
    state.active = 0;
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
      const cell = make("div", column.show ? column.show(i) : format(column.value(i), column.key), `cell ${column.key}${column.number ? " n" : ""}`);
      cell.setAttribute("role", "gridcell");
      cell.dataset.title = column.title;
      if (column.wide) cell.dir = "auto";
      element.append(cell);
    }
    if (data.selected && data.selected[i]) element.classList.add("selected");
    return element;
  }

  function inView(size) {
    const top = grid.scrollTop, space = grid.clientHeight;
    return [Math.max(0, Math.floor(top / size) - 6), Math.ceil((top + space) / size) + 6];
  }

  function render(keep, places) {
    const size = height(), [first, end] = places || inView(size), last = Math.min(state.shown.length, end);
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
    made.append(make("caption", "Gradient norm (and loss, nats per response token) of each member at each epoch"));
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
    at("previous").disabled = state.active === 0;
    at("next").disabled = state.active === state.shown.length - 1;
    if (!at("detail").open) at("detail").showModal();
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

  function start() {
    if (data.source) choices("f-source", data.source.names);
    if (data.kind) choices("f-kind", data.kind.names);
    for (const column of columns) {
      const option = make("option", column.title);
      option.value = column.key;
      at("sort").append(option);
    }
    grid.style.setProperty("--columns", columns.map((one) => one.wide ? `minmax(${one.size}rem, 1fr)` : `${one.size}rem`).join(" "));
    grid.style.setProperty("--wide", `${columns.reduce((sum, one) => sum + one.size + 0.7, 1.8)}rem`);
    grid.setAttribute("aria-colcount", String(columns.length));
    heads();
    apply();
    for (const element of host.querySelectorAll("[data-filter]")) element.addEventListener("input", apply);
    at("sort").addEventListener("change", () => by(at("sort").value, state.down));
    at("direction").addEventListener("click", () => by(state.key, !state.down));
    at("clear").addEventListener("click", () => {
      for (const element of host.querySelectorAll("[data-filter]")) element.value = "";
      apply();
    });
    let due = false;
    grid.addEventListener("scroll", () => {
      if (due) return;
      due = true;
      requestAnimationFrame(() => { due = false; render(true); });
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
      go(Number(element.dataset.place));
      open();
    });
    grid.addEventListener("keydown", (event) => {
      if (event.target !== grid) return;
      const page = Math.max(1, Math.floor(grid.clientHeight / height()) - 2);
      const step = {ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity}[event.key];
      if (step !== undefined) go(step === -Infinity ? 0 : step === Infinity ? state.shown.length - 1 : state.active + step);
      else if (event.key === "Enter") open();
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
