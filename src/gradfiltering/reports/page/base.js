"use strict";
/* Theme, and charts drawn from their descriptions when they come into view. Text is only ever set as text. */
const gf = (() => {
  const root = document.documentElement;
  const read = (id) => {
    const element = document.getElementById(id);
    return element === null ? null : JSON.parse(element.textContent);
  };
  const charts = read("charts") || {};
  const markers = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross"];
  const variable = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const coarse = matchMedia("(pointer: coarse)").matches;

  const make = (tag, text, name) => {
    const element = document.createElement(tag);
    if (text !== undefined && text !== null) element.textContent = text;
    if (name) element.className = name;
    return element;
  };
  // Plotly reads a few tags and entities in labels; names of sources and models are text.
  const safe = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  function shades() {
    // Cividis, which reads alike with and without colour vision; its dark end is lifted on a dark page.
    const dark = getComputedStyle(root).colorScheme.includes("dark");
    const stops = ["#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838"];
    if (dark) stops[0] = "#3b5b9d", stops[1] = "#5a73a3";
    else stops[4] = "#b9a34f", stops[5] = "#e0bd1f";
    return stops.map((colour, place) => [place / (stops.length - 1), colour]);
  }

  /* A title broken into lines that fit. */
  function wrapped(text, room) {
    const most = Math.max(12, Math.floor(room / 7.6)), lines = [""];
    for (const word of text.split(" ")) {
      const last = lines[lines.length - 1];
      if (last && last.length + word.length + 1 > most) lines.push(word);
      else lines[lines.length - 1] = last ? `${last} ${word}` : word;
    }
    return lines.map(safe).join("<br>");
  }

  function logTicks(values) {
    const low = Math.log10(values.reduce((a, b) => Math.min(a, b), Infinity)), high = Math.log10(values.reduce((a, b) => Math.max(a, b), 0));
    const tickvals = [], step = Math.max(1, Math.ceil((high - low) / 8));
    for (let power = Math.floor(low) - 1; power <= high + 1; power++) {
      if (high - low > 3) { if (power % step === 0) tickvals.push(10 ** power); }
      else for (const times of high - low > 1.5 ? [1, 3] : [1, 2, 5]) tickvals.push(times * 10 ** power);
    }
    const word = (v) => v >= 1e4 || v < 1e-3 ? v.toExponential(0).replace("e+", "e") : String(Number(v.toPrecision(2)));
    return {tickvals, ticktext: tickvals.map(word)};
  }

  function trace(series, number, many, chart) {
    const colour = variable(`--c${series.colour % 6}`);
    const common = {
      x: series.x.map((v) => typeof v === "string" ? safe(v) : v),
      y: series.y.map((v) => typeof v === "string" ? safe(v) : v),
      name: safe(series.name), showlegend: many && series.name !== "", legendgroup: String(number),
    };
    if (series.hover) Object.assign(common, {text: series.hover.map(safe), hovertemplate: "%{text}<extra></extra>"});
    if (series.kind === "bars") {
      const width = series.width === null ? {} : {width: series.width};
      return [{...common, type: "bar", marker: {color: colour, opacity: number ? 0.75 : 0.9}, ...width}];
    }
    const band = series.low && series.high;
    if (series.kind === "line") {
      const mode = series.x.length > 60 ? "lines" : "lines+markers";
      const line = {...common, type: "scatter", mode, line: {color: colour, width: 2.2, dash: series.dash ? "dash" : "solid"},
        marker: {color: colour, size: 6, symbol: markers[series.colour % markers.length]}};
      if (!band) return [line];
      const edge = {type: "scatter", mode: "lines", x: series.x, line: {width: 0, color: colour}, showlegend: false,
        hoverinfo: "skip", legendgroup: String(number)};
      return [{...edge, y: series.low}, {...edge, y: series.high, fill: "tonexty", fillcolor: colour + "2e"}, line];
    }
    const marker = {size: series.x.length > 300 ? 5 : 9, color: colour, symbol: markers[series.colour % markers.length]};
    if (series.shade) {
      Object.assign(marker, {color: series.shade, colorscale: shades(), cmin: 0, cmax: 1, opacity: 0.85, symbol: "circle",
        showscale: chart.shade_title !== "", colorbar: {title: {text: safe(chart.shade_title), side: "right"}, tickvals: [0, 1],
          ticktext: chart.shade_ends.map(safe), thickness: 10, len: 0.9, outlinewidth: 0}});
    }
    const points = {...common, type: "scatter", mode: "markers", marker};
    if (band) {
      const middle = series.across ? series.x : series.y;
      points[series.across ? "error_x" : "error_y"] = {type: "data", symmetric: false, color: colour, thickness: 2, width: 6,
        array: series.high.map((v, i) => v - middle[i]), arrayminus: series.low.map((v, i) => middle[i] - v)};
    }
    return [points];
  }

  function draw(place) {
    const chart = charts[place.dataset.chart];
    if (!chart || typeof Plotly === "undefined") return;
    const text = variable("--text"), grid = variable("--grid"), muted = variable("--muted");
    const named = chart.series.filter((one) => one.name !== "").length > 1;
    const traces = chart.series.flatMap((one, number) => trace(one, number, named, chart));
    // A title stands in the middle of the plot, which long names on the other axis make narrow.
    const longest = chart.series.flatMap((one) => one.y).reduce((most, v) => typeof v === "string" ? Math.max(most, v.length) : most, 0);
    const axis = (title, log, room) => ({title: {text: wrapped(title, room), standoff: 8}, type: log ? "log" : undefined,
      gridcolor: grid, zerolinecolor: grid, linecolor: muted, automargin: true});
    const height = Math.round(chart.height * (root.classList.contains("paper") ? 0.72 : 1));
    const layout = {
      height, autosize: true, margin: {l: 56, r: 16, t: 26, b: 48}, hovermode: "closest", bargap: 0.08,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", barmode: "overlay",
      font: {family: "system-ui, sans-serif", size: 13, color: text}, dragmode: coarse ? false : "zoom",
      xaxis: axis(chart.x_title, chart.x_log, place.clientWidth - Math.max(90, 50 + 6.5 * longest) - (chart.shade_title ? 60 : 0)),
      yaxis: axis(chart.y_title, chart.y_log, height - 110),
      legend: {orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: {size: 12}, itemclick: "toggle"},
      hoverlabel: {align: "left", bgcolor: variable("--raised"), bordercolor: variable("--line"), font: {color: text, size: 12}},
      shapes: [], annotations: [],
    };
    for (const side of ["x", "y"]) {
      if (!chart[`${side}_log`]) continue;
      const every = chart.series.flatMap((one) => [...one[side], ...(one.across === (side === "x") ? [...(one.low || []), ...(one.high || [])] : [])]);
      Object.assign(layout[`${side}axis`], logTicks(every.filter((v) => v > 0)));
    }
    if (chart.whole_x) Object.assign(layout.xaxis, {tickformat: "d", dtick: 1});
    if (chart.x_ticks.length) {
      Object.assign(layout.xaxis, {tickvals: chart.x_ticks.map((t) => t[0]), ticktext: chart.x_ticks.map((t) => safe(t[1]))});
    }
    for (const side of ["x", "y"]) {
      if (chart.series.some((one) => typeof one[side][0] === "string")) {
        Object.assign(layout[side + "axis"], {type: "category", automargin: true});
        const names = new Set(chart.series.flatMap((one) => one[side]));
        if (side === "y") layout.yaxis.range = [names.size - 0.4, -0.6];
      }
    }
    for (const mark of chart.marks) {
      const across = mark.axis === "x", log = across ? chart.x_log : chart.y_log;
      const line = {color: muted, width: 1.5, dash: "dash"};
      layout.shapes.push(across ? {type: "line", x0: mark.at, x1: mark.at, yref: "paper", y0: 0, y1: 1, line}
        : {type: "line", y0: mark.at, y1: mark.at, xref: "paper", x0: 0, x1: 1, line});
      const at = log ? Math.log10(mark.at) : mark.at;
      layout.annotations.push({text: safe(mark.label), showarrow: false, font: {color: muted, size: 12},
        ...(across ? {x: at, yref: "paper", y: 1, yanchor: "bottom"} : {y: at, xref: "paper", x: 1, xanchor: "left", yanchor: "middle"})});
      if (!across) layout.margin.r = 20 + 6.5 * mark.label.length;
    }
    if (named && chart.marks.some((mark) => mark.axis === "x")) layout.legend.y = 1.1;
    if (named) layout.margin.t = 46;
    if (chart.diagonal) {
      const both = chart.series.flatMap((one) => [...one.x, ...one.y]).filter((v) => v !== null && (!chart.x_log || v > 0));
      const low = both.reduce((a, b) => Math.min(a, b), Infinity), high = both.reduce((a, b) => Math.max(a, b), -Infinity);
      layout.shapes.push({type: "line", x0: low, y0: low, x1: high, y1: high, layer: "below", line: {color: muted, width: 1.5, dash: "dot"}});
    }
    place.style.height = `${height}px`;
    place.dataset.drawn = place.dataset.chart;
    Plotly.react(place, traces, layout, {displayModeBar: false, responsive: true});
  }

  function show(place, name) {
    place.dataset.chart = name;
    place.setAttribute("aria-label", charts[name].question);
    if (place.dataset.drawn) draw(place);
  }

  /* The table behind a chart, made when it is asked for; long ones are thinned, and say so. */
  function numbers(details) {
    const chart = charts[details.dataset.numbers], most = 200;
    const wide = make("div", null, "scroll");
    wide.tabIndex = 0;
    wide.setAttribute("role", "region");
    wide.setAttribute("aria-label", `Numbers: ${chart.question} (${chart.x_title})`);
    const table = make("table"), head = make("tr"), body = make("tbody"), top = make("thead");
    const ends = chart.series.some((one) => one.low);
    for (const title of ["series", chart.x_title, chart.y_title, ...(ends ? ["low", "high"] : [])]) {
      const cell = make("th", title);
      cell.scope = "col";
      head.append(cell);
    }
    top.append(head);
    let left = 0;
    for (const one of chart.series) {
      left += Math.max(0, one.x.length - most);
      for (let i = 0; i < Math.min(one.x.length, most); i++) {
        const row = make("tr");
        const cells = [one.name || "–", one.x[i], one.y[i], ...(ends ? [one.low && one.low[i], one.high && one.high[i]] : [])];
        for (const value of cells) row.append(make("td", value === null || value === undefined ? "–" : value));
        body.append(row);
      }
    }
    table.append(top, body);
    wide.append(table);
    details.append(wide);
    if (left) details.append(make("p", `${left} more points are not listed.`, "muted"));
  }

  const places = () => [...document.querySelectorAll(".plot[data-chart]")];
  const redraw = () => places().filter((place) => place.dataset.drawn).forEach(draw);

  function start() {
    const watch = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        watch.unobserve(entry.target);
        draw(entry.target);
      }
    }, {rootMargin: "400px"});
    places().forEach((place) => watch.observe(place));
    for (const details of document.querySelectorAll("details[data-numbers]")) {
      details.addEventListener("toggle", () => { if (details.open && details.children.length === 1) numbers(details); });
    }
    for (const button of document.querySelectorAll("button[data-shows]")) {
      button.addEventListener("click", () => {
        const place = document.getElementById(button.dataset.place);
        for (const other of button.parentElement.querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
        show(place, button.dataset.shows);
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
      places().forEach((place) => { draw(place); });
    });
    addEventListener("afterprint", () => {
      root.classList.remove("paper");
      closed.forEach((details) => { details.open = false; });
      set(before);
    });
  }
  start();
  return {read, make, variable, charts, draw, show};
})();
