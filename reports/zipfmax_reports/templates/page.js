// The page works without this script; with it, figures answer to controls, hover, focus and a colour switch.
"use strict";
(async () => {
  if (typeof DecompressionStream === "undefined") return; // a browser before 2023: the static page is whole
  const unpacked = async (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).json();
  };
  const data = await unpacked(document.getElementById("page-data").textContent);
  const root = document.documentElement;
  // Points come as columns and rows; what is said of each is put together from its cell.
  const records = ({ columns, data: rows }) => rows.map((row) => Object.fromEntries(columns.map((column, index) => [column, row[index]])));
  const replays = (item) => (item.replayed ? ", each the replay of a CUDA graph" : "");
  const speedup = (point) => {
    const other = data.controls.baseline.options.find((option) => option.value === point.baseline).label;
    const cell = data.cells[point.case].implementations.find((item) => item.impl === point.impl);
    point.name = `${point.classes}, ${point.labels_name}: ${point.text} over ${other}`;
    point.lines = [`median ${cell.median} of ${cell.n_samples} samples${replays(cell)}`];
    if (point.interval) point.lines.push(`95 % interval of the speedup: ${point.interval}`);
    if (cell.occupancy !== "–") point.lines.push(`head, then tails: ${cell.occupancy}`);
    if (cell.memory !== "–") point.lines.push(`peak temporary memory ${cell.memory}`);
    point.describe = `${point.name}. ${point.lines.join(". ")}`;
    return point;
  };
  const comparison = (point) => {
    point.name = `${point.impl} against ${point.against}, ${point.dtype}, ${point.tensor}: ${point.share} of the budget`;
    point.lines = [`${point.comparisons} comparison${point.comparisons === 1 ? "" : "s"} of nearly this error`, `the largest in ${point.case}`];
    point.describe = `${point.name}. ${point.lines.join(". ")}`;
    return point;
  };
  const points = data.points ? records(data.points).map(speedup) : [];
  const parity = data.parity ? records(data.parity).map(comparison) : [];
  const figures = [...document.querySelectorAll("figure[data-chart]")].filter((figure) => data.charts.light[figure.dataset.chart]);
  const steered = figures.filter((figure) => figure.dataset.chart !== "strip");
  const choices = Object.fromEntries(Object.entries(data.controls || {}).map(([name, control]) => [name, control.selected]));
  const views = new Map();
  const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");

  const element = (tag, text, attributes = {}) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text; // never markup: names come from whoever wrote the run
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };
  const scheme = () => root.dataset.scheme || (prefersDark.matches ? "dark" : "light");
  // The span of the heat map's colours, fitted to what is shown: see `fitted` in figures.py.
  const span = () => {
    const logs = points.filter(matches).map((point) => point.log2);
    if (!logs.length) return [-1, 0, 1];
    const low = Math.min(...logs), high = Math.max(...logs);
    const margin = Math.max(high - low, 0.5) / 4;
    const middle = low > 0 ? Math.max(0, low - margin) : Math.min(0, high + margin);
    const reach = Math.max(high - middle, middle - low, 0.5);
    return [middle - reach, middle, middle + reach];
  };

  // Hover and focus show the same lines.
  const tip = element("div", undefined, { id: "tip", role: "tooltip", hidden: "" });
  document.body.append(tip);
  const hideTip = () => { tip.hidden = true; };
  const showTip = (datum, box) => {
    tip.replaceChildren(element("strong", datum.name), ...datum.lines.map((line) => element("div", line)));
    tip.hidden = false;
    const left = Math.min(box.right + 10, document.documentElement.clientWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(8, left) + window.scrollX}px`;
    tip.style.top = `${box.bottom + 8 + window.scrollY}px`;
  };

  // One stop of the tab key a chart; arrow keys go from mark to mark, Enter opens a cell.
  const focusable = (container) => {
    const marks = [...container.querySelectorAll("g.role-mark > path[aria-label]")];
    marks.forEach((mark, index) => {
      mark.setAttribute("tabindex", index === 0 ? "0" : "-1");
      mark.setAttribute("role", "img");
    });
    return marks;
  };
  const step = (container, event) => {
    const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!move) return;
    const marks = [...container.querySelectorAll("[tabindex]")];
    const from = marks.indexOf(event.target);
    if (from < 0) return;
    event.preventDefault();
    event.target.setAttribute("tabindex", "-1");
    const next = marks[(from + move + marks.length) % marks.length];
    next.setAttribute("tabindex", "0");
    next.focus();
  };

  async function draw(figure) {
    const name = figure.dataset.chart;
    const container = figure.querySelector(".interactive");
    figure.querySelector(".static").hidden = true;
    container.hidden = false;
    const spec = structuredClone(data.charts[scheme()][name]);
    spec.datasets = { points, parity };
    for (const parameter of spec.params || []) {
      const control = parameter.name.replace("chosen_", "");
      if (control in choices) parameter.value = choices[control];
      if (parameter.name === "span") parameter.value = span();
    }
    if (views.has(name)) views.get(name).finalize();
    const { view } = await vegaEmbed(container, spec, {
      mode: "vega-lite", renderer: "svg", actions: false, ast: true, logLevel: vega.Error,
      tooltip: (_, event, item, value) => (value ? showTip(item.datum, event.target.getBoundingClientRect()) : hideTip()),
    });
    views.set(name, view);
    view.addEventListener("focusin", (event, item) => item && item.datum && item.datum.lines && showTip(item.datum, event.target.getBoundingClientRect()));
    view.addEventListener("focusout", hideTip);
    view.addEventListener("click", (_, item) => item && item.datum && open(item.datum, figure));
    view.addEventListener("keydown", (event, item) => {
      if (event.key === "Escape") hideTip();
      if ((event.key === "Enter" || event.key === " ") && item && item.datum) { event.preventDefault(); open(item.datum, figure); }
    });
    if (!container.dataset.keys) {
      container.addEventListener("keydown", (event) => step(container, event));
      container.dataset.keys = "arrows";
    }
    focusable(container);
  }

  // Titles and captions of the figures that the controls steer say what was chosen.
  const label = (name) => data.controls[name].options.find((option) => option.value === choices[name]).label;
  const opened = {};
  function entitle() {
    if (!data.controls) return;
    for (const figure of steered) {
      const title = figure.querySelector("h3");
      opened[figure.id] ||= title.textContent;
      title.textContent = opened[figure.id].replace(/over .*?, (by|vocabulary)/, `over ${label("baseline")}, $1`);
      const rest = Object.keys(choices).filter((name) => !["subject", "baseline"].includes(name)).map((name) => `${data.controls[name].label.toLowerCase()} ${label(name)}`);
      figure.querySelector("figcaption").textContent = `${label("subject")} over ${label("baseline")}; ${rest.join(", ")}.`;
    }
  }

  const matches = (row) => Object.entries(data.controls).every(([name, control]) => !(control.column in row) || row[control.column] === choices[name]);
  const say = () => {
    const shown = points.filter(matches);
    const lacking = data.missing.filter(matches);
    const reasons = [...new Set(lacking.map((row) => `${row.status.replaceAll("_", " ")}: ${row.reason || "no reason recorded"}`))];
    const without = lacking.reduce((sum, row) => sum + row.cells, 0);
    steered.forEach((figure) => { figure.querySelector(".interactive").hidden = !shown.length; });
    const parts = [shown.length ? `${shown.length} cells shown.` : "No cell was measured for this choice."];
    if (without) parts.push(`${without} without a time (${reasons.slice(0, 3).join("; ")}).`);
    document.getElementById("controls-status").textContent = parts.join(" ");
  };

  // What differs from the opening choice stands in the address, so that a link shows what its sender saw.
  const keepInAddress = () => {
    const query = new URLSearchParams();
    for (const [name, control] of Object.entries(data.controls)) {
      if (choices[name] !== control.selected) query.set(name, choices[name]);
    }
    const text = query.toString();
    try {
      window.history.replaceState(null, "", `${window.location.pathname}${text ? `?${text}` : ""}${window.location.hash}`);
    } catch { /* a browser that keeps the address of a file as it is */ }
  };
  const readAddress = () => {
    for (const [name, value] of new URLSearchParams(window.location.search)) {
      const control = (data.controls || {})[name];
      const found = control && control.options.find((option) => String(option.value) === value);
      if (found) choices[name] = found.value;
    }
  };

  // The links to the sections: the one that is being read is marked.
  function followSections() {
    const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
    const sections = [...links.keys()].map((id) => document.getElementById(id)).filter(Boolean);
    const mark = () => {
      const passed = sections.filter((section) => section.getBoundingClientRect().top < 120);
      const current = passed.length ? passed[passed.length - 1].id : "answers";
      links.forEach((link, id) => (id === current ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
    };
    window.addEventListener("scroll", mark, { passive: true });
    mark();
  }

  // A click on a heading sorts a table: numbers by what they are worth with their units, the rest as text.
  const UNITS = { "": 1, "×": 1, "%": 1, s: 1, ms: 1e-3, "µs": 1e-6, ns: 1e-9, B: 1, KiB: 1024, MiB: 1024 ** 2, GiB: 1024 ** 3, k: 1e3, M: 1e6, G: 1e9, T: 1e12 };
  const worth = (text) => {
    const found = /^(-?[\d,]*\.?\d+(?:e[+-]?\d+)?)\s*(\S*)$/.exec(text.trim());
    return found && found[2] in UNITS ? Number(found[1].replaceAll(",", "")) * UNITS[found[2]] : NaN;
  };
  function sortBy(table, column, descending) {
    const rows = [...table.tBodies[0].rows];
    const keys = new Map(rows.map((row) => [row, row.cells[column].textContent]));
    const numeric = table.tHead.rows[0].cells[column].classList.contains("number");
    const sign = descending ? -1 : 1;
    rows.sort((one, other) => {
      if (!numeric) return sign * keys.get(one).localeCompare(keys.get(other), undefined, { numeric: true });
      const [a, b] = [worth(keys.get(one)), worth(keys.get(other))];
      return Number.isNaN(a) || Number.isNaN(b) ? Number.isNaN(a) - Number.isNaN(b) : sign * (a - b); // what is missing last
    });
    table.tBodies[0].append(...rows);
    [...table.tHead.rows[0].cells].forEach((cell, index) => (index === column ? cell.setAttribute("aria-sort", descending ? "descending" : "ascending") : cell.removeAttribute("aria-sort")));
  }
  function makeSortable() {
    for (const table of document.querySelectorAll("table.data")) {
      if (table.tBodies[0].rows.length < 2) continue;
      [...table.tHead.rows[0].cells].forEach((cell, column) => {
        const button = element("button", cell.textContent, { type: "button" });
        button.addEventListener("click", () => sortBy(table, column, cell.getAttribute("aria-sort") === "ascending"));
        cell.replaceChildren(button);
      });
    }
  }

  function buildControls() {
    const form = document.getElementById("controls");
    if (!form || !data.controls) return;
    for (const [name, control] of Object.entries(data.controls)) {
      const label = element("label", control.label);
      const select = element("select", undefined, { name });
      control.options.forEach((option, index) => {
        const item = element("option", option.label, { value: index });
        item.selected = option.value === choices[name];
        select.append(item);
      });
      select.addEventListener("change", async () => {
        choices[name] = control.options[select.value].value;
        keepInAddress();
        for (const view of views.values()) {
          const chosen = `chosen_${name}`;
          const state = view.getState({ signals: (signal) => signal === chosen || signal === "span" }).signals;
          if (chosen in state) view.signal(chosen, choices[name]);
          if ("span" in state) view.signal("span", span());
          await view.runAsync();
        }
        entitle();
        figures.forEach((figure) => focusable(figure.querySelector(".interactive")));
        say();
      });
      label.append(select);
      form.append(label);
    }
    form.addEventListener("submit", (event) => event.preventDefault());
    form.hidden = false;
    entitle();
    say();
  }

  // A cell's drill-down: every implementation's samples as a strip, its numbers, and the command.
  async function open(datum, figure) {
    const cell = datum.case && data.cells && data.cells[datum.case];
    if (!cell) return;
    hideTip();
    const panel = document.getElementById("detail");
    const strip = element("div", undefined, { class: "strip" });
    const drawings = [];
    const table = element("table");
    table.append(element("caption", "Every implementation in this cell"));
    const head = element("tr");
    ["implementation", "median", "limit", "limit / measured", "peak memory", "head, then tails", "samples"].forEach((name) => head.append(element("th", name, { scope: "col" })));
    table.append(element("thead"));
    table.tHead.append(head);
    const body = table.createTBody();
    for (const item of cell.implementations) {
      const row = body.insertRow();
      row.append(element("th", item.impl, { scope: "row" }));
      const values = item.status === "ok" ? [item.median, item.limit, item.efficiency, item.memory, item.occupancy, `${item.n_samples}${replays(item)}`] : [`${item.status.replaceAll("_", " ")}: ${item.reason}`];
      values.forEach((value) => row.append(element("td", value)));
      if (values.length === 1) row.lastChild.colSpan = 6;
    }
    const scroll = element("div", undefined, { class: "scroll", tabindex: "0", role: "region", "aria-label": "Every implementation in this cell" });
    scroll.append(table);
    const close = element("button", "Close", { type: "button", class: "close" });
    const back = document.activeElement;
    close.addEventListener("click", () => { panel.hidden = true; if (back && back.focus) back.focus(); });
    const parts = [];
    for (const item of cell.implementations.filter(({ split }) => split)) {
      const bar = element("div", undefined, { class: "split" });
      const sum = `The whole step took ${item.split.whole} there, the fastest of ${item.split.passes} passes.`;
      const title = `Where the time of ${item.impl} goes`;
      parts.push(element("h4", title), element("p", `${data.how_split} ${sum}`, { class: "reading" }), bar, linesTable(item.split.lines, title));
      drawings.push(() => drawSplit(bar, item));
    }
    if (cell.parts.length) {
      const title = "What the products are made of";
      parts.push(element("h4", title), linesTable(cell.parts, title));
    }
    panel.replaceChildren(
      close, element("h3", datum.name, { tabindex: "-1" }), element("p", `Cutoffs ${cell.cutoffs}. ${sampled(cell)}`),
      strip, scroll, ...parts, element("p", "Measure this cell again:"), commandLine(cell.command),
    );
    (figure.closest(".pair") || figure).after(panel);
    panel.hidden = false;
    panel.querySelector("h3").focus();
    panel.scrollIntoView({ block: "nearest" });
    const values = cell.implementations.flatMap((item) => (item.samples_ms || []).map((ms) => ({ impl: item.impl, ms })));
    await embed(strip, "samples", values, 50 + 26 * cell.implementations.length);
    for (const drawing of drawings) await drawing();
  }
  const embed = (place, name, values, height) => {
    const spec = structuredClone(data.charts[scheme()][name]);
    spec.data = { values };
    if (height) spec.height = height;
    return vegaEmbed(place, spec, { mode: "vega-lite", renderer: "svg", actions: false, ast: true });
  };
  const sampled = (cell) => {
    const thinned = cell.implementations.filter((item) => item.samples_ms && item.samples_ms.length < item.n_samples);
    const left = thinned.map((item) => `${item.samples_ms.length} of ${item.n_samples} of ${item.impl}`);
    return `Samples, each a tick${left.length ? ` (evenly chosen by size: ${left.join(", ")})` : ""}:`;
  };
  // Head, tails and the rest of one step as one stacked bar; the table below it holds the numbers.
  const drawSplit = (place, { impl, split }) => embed(place, "split", split.lines.map(({ part }, index) => ({ impl, part, ms: split.ms[index] })));
  const linesTable = (rows, title) => {
    const table = element("table");
    const head = table.createTHead().insertRow();
    Object.keys(rows[0]).forEach((name) => head.append(element("th", name, { scope: "col" })));
    const body = table.createTBody();
    rows.forEach((row) => {
      const line = body.insertRow();
      Object.values(row).forEach((value, index) => line.append(index ? element("td", value) : element("th", value, { scope: "row" })));
    });
    const scroll = element("div", undefined, { class: "scroll", tabindex: "0", role: "region", "aria-label": title });
    scroll.append(table);
    return scroll;
  };
  const commandLine = (text) => {
    const pre = element("pre", undefined, { class: "command" });
    pre.append(element("code", text));
    return pre;
  };

  function buildSwitch() {
    const group = document.getElementById("scheme");
    group.hidden = false;
    group.addEventListener("click", async (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      if (button.dataset.scheme === "auto") delete root.dataset.scheme;
      else root.dataset.scheme = button.dataset.scheme;
      group.querySelectorAll("button").forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      await drawAll();
    });
    prefersDark.addEventListener("change", () => root.dataset.scheme || drawAll());
  }

  async function drawAll() {
    root.dataset.charts = "drawing";
    for (const figure of figures) await draw(figure);
    root.dataset.charts = "ready";
  }

  readAddress();
  buildSwitch();
  makeSortable();
  followSections();
  buildControls();
  drawAll();
})();
