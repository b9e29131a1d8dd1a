"use strict";
/* Theme, and charts drawn from their descriptions when they come into view. Text is only ever set as text. */
const gf = (() => {
  const root = document.documentElement;
  const read = (id) => {
    const element = document.getElementById(id);
    return element === null ? null : JSON.parse(element.textContent);
  };
  const charts = read("charts");
  const variable = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  const make = (tag, text, name) => {
    const element = document.createElement(tag);
    if (text !== undefined && text !== null) element.textContent = text;
    if (name) element.className = name;
    return element;
  };
  /* A title broken into lines that fit. */
  function wrap(text, room) {
    const longest = Math.max(12, Math.floor(room / 6.8)), lines = [""];
    for (const word of text.split(" ")) {
      const last = lines[lines.length - 1];
      if (last && last.length + word.length + 1 > longest) lines.push(word);
      else lines[lines.length - 1] = last ? `${last} ${word}` : word;
    }
    return lines;
  }

  /* A copy of a description in which colours are the theme's and titles of axes fit; data stay as they are. */
  function adapt(value, room, key) {
    if (typeof value === "string") return charts.colours[value] ? variable(charts.colours[value]) : value;
    if (Array.isArray(value)) return value.map((entry) => adapt(entry, room));
    if (value === null || typeof value !== "object") return value;
    const entries = Object.entries(value).map(([name, entry]) => {
      if (name === "datasets" || name === "data" || name === "domain") return [name, entry];
      if (name === "title" && typeof entry === "string" && room[key]) return [name, wrap(entry, room[key])];
      return [name, adapt(entry, room, name)];
    });
    return Object.fromEntries(entries);
  }

  function draw(plot) {
    const description = charts.drawings[plot.dataset.chart];
    if (!description || typeof vegaEmbed === "undefined") return null;
    const width = plot.clientWidth, height = Math.round(description.height * (root.classList.contains("paper") ? 0.72 : 1));
    // A title stands in the middle of the plot, which long names on the other axis make narrow.
    const names = Object.values(description.datasets).flat().map((row) => typeof row.y === "string" ? row.y.length : 0);
    const room = {x: width - 60 - Math.min(220, 6.5 * Math.max(0, ...names)), y: height - 110};
    plot.style.height = `${height}px`;
    plot.dataset.drawn = plot.dataset.chart;
    const options = {mode: "vega-lite", actions: false, ast: true, renderer: "svg", defaultStyle: false,
      config: {...adapt(charts.style, room), background: "transparent"}, tooltip: {disableDefaultStyle: true}};
    // The plot has a label of its own, which Vega would replace; its marks are no use to a screen reader.
    const canvas = plot.firstElementChild || plot.appendChild(make("div"));
    canvas.setAttribute("aria-hidden", "true");
    return vegaEmbed(canvas, {...adapt(description, room), width, height}, options);
  }

  function show(plot, name) {
    plot.dataset.chart = name;
    if (plot.dataset.drawn) draw(plot);
  }

  const plots = () => [...document.querySelectorAll(".plot[data-chart]")];
  const redraw = () => plots().filter((plot) => plot.dataset.drawn).forEach(draw);

  function start() {
    const watch = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        watch.unobserve(entry.target);
        draw(entry.target);
      }
    }, {rootMargin: "400px"});
    plots().forEach((plot) => watch.observe(plot));
    let size = innerWidth;
    addEventListener("resize", () => { if (innerWidth !== size) { size = innerWidth; redraw(); } });
    for (const button of document.querySelectorAll("button[data-shows]")) {
      button.addEventListener("click", () => {
        const plot = document.getElementById(button.dataset.plot);
        for (const other of button.parentElement.querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
        show(plot, button.dataset.shows);
      });
    }
    const themes = ["", "light", "dark"], words = {"": "as the system", light: "light", dark: "dark"};
    const button = document.getElementById("theme");
    const set = (theme) => {
      if (theme) root.dataset.theme = theme; else delete root.dataset.theme;
      button.textContent = `Theme: ${words[theme]}`;
      redraw();
    };
    button.hidden = false;
    button.addEventListener("click", () => set(themes[(themes.indexOf(root.dataset.theme || "") + 1) % 3]));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    let before = "", closed = [];
    addEventListener("beforeprint", () => {
      before = root.dataset.theme || "";
      root.dataset.theme = "light";
      root.classList.add("paper");
      closed = [...document.querySelectorAll("details:not([open], .numbers, .screen)")];
      closed.forEach((details) => { details.open = true; });
      plots().forEach(draw);
    });
    addEventListener("afterprint", () => {
      root.classList.remove("paper");
      closed.forEach((details) => { details.open = false; });
      set(before);
    });
  }
  /* The meaning of a term, while a pointer or the keyboard's focus rests on it; Escape hides it. */
  function explain() {
    const tip = make("div");
    tip.id = "tip";
    tip.hidden = true;
    tip.setAttribute("role", "tooltip");
    document.body.append(tip);
    let shown = null;
    const hide = () => {
      if (shown) shown.removeAttribute("aria-describedby");
      shown = null;
      tip.hidden = true;
    };
    const show = (event) => {
      const term = event.target.closest && event.target.closest("[data-tip]");
      // A term with the keyboard's focus keeps its tip while the page moves under a resting pointer.
      if (!term) return event.type === "pointerover" && shown === document.activeElement ? undefined : hide();
      if (term === shown) return;
      hide();
      shown = term;
      tip.textContent = term.dataset.tip;
      // A dialog lies above everything else on the page, so the tip goes into it.
      (term.closest("dialog") || document.body).append(tip);
      tip.hidden = false;
      term.setAttribute("aria-describedby", "tip");
      settle();
    };
    const settle = () => {
      if (!shown) return;
      const place = shown.getBoundingClientRect(), size = tip.getBoundingClientRect();
      const below = place.bottom + 6 + size.height <= innerHeight;
      tip.style.left = `${Math.max(8, Math.min(place.left, innerWidth - size.width - 8))}px`;
      tip.style.top = `${below ? place.bottom + 6 : Math.max(8, place.top - size.height - 6)}px`;
    };
    for (const name of ["pointerover", "focusin"]) document.addEventListener(name, show);
    document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
    // What has the focus keeps its tip where it is scrolled to, as it is when the focus brings it into view.
    document.addEventListener("scroll", () => { if (shown !== document.activeElement) hide(); else settle(); }, {capture: true, passive: true});
  }
  start();
  explain();
  return {read, make, draw};
})();
