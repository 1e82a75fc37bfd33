// How fast a model answers, live: maps of throughput and latency over batch size and threads that fill and sharpen, one
// against the other as a curve, and of one cell the distribution of its latencies and their time beside the hardware's.
//
// As in live.js a chart is mounted once and then only redrawn. The maps are buttons in a grid: they change in place. What
// is measured shares this machine with whoever looks on, so the view asks once a second and draws only what moved.

const VERSION = new URL(import.meta.url).searchParams.get("v") ?? "";
const { PollingView, count, duration, element, fade, keep, loadPlotly, loadStylesheet, preparingText, readLook, setText, threeDigits, whole } =
  await import(new URL(`common.js?v=${VERSION}`, import.meta.url).href); // a static import would lose the version

const ALIVE_MS = 1000;
const EAGER_MS = 300; // until the first figures: someone has just pressed Run
const DASHES = ["solid", "dash", "dot", "dashdot"];

// Plotly reads names and hover texts as a kind of HTML: what somebody wrote must stay text.
const literal = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const capital = (text) => text && text[0].toUpperCase() + text.slice(1);
const rate = (value) => count(value < 100 ? value : Math.round(value));

// 812 µs, 3.10 ms, 1.20 s (as in engine/units.py).
function latency(seconds) {
  if (seconds >= 1) return `${threeDigits(seconds)} s`;
  return seconds >= 1e-3 ? `${threeDigits(seconds * 1e3)} ms` : `${threeDigits(seconds * 1e6)} µs`;
}

// --- what Streamlit calls ---------------------------------------------------------------------------------------

export function mount({ data, parentElement, setStateValue, setTriggerValue }) {
  return kept(View, { data, parentElement, setStateValue, setTriggerValue });
}

// Cells to choose, before a run: batch sizes down, threads or precisions across.
export function pick({ data, parentElement, setStateValue, setTriggerValue }) {
  return kept(Picker, { data, parentElement, setStateValue, setTriggerValue });
}

function kept(Kind, { data, parentElement, setStateValue, setTriggerValue }) {
  return keep(parentElement, (view) => view.key === data.key, () => new Kind(parentElement, data), (view) => {
    view.tell = setStateValue;
    view.onEnd = (status) => setTriggerValue("ended", status);
    view.update(data);
  });
}

// A hex colour nearer to black than to white.
function isDark(color) {
  const hex = /^#([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})$/i.exec(color);
  return Boolean(hex) && hex.slice(1).reduce((sum, part) => sum + parseInt(part, 16), 0) < 384;
}

// --- the picker ---------------------------------------------------------------------------------------------------

class Picker {
  constructor(parent, data) {
    Object.assign(this, { parent, key: data.key, chosen: new Set(data.chosen), shape: "" });
    this.node = element("div", "iso-live iso-picker", "picker");
    this.node.style.visibility = "hidden"; // until the stylesheet is there
    parent.append(this.node);
  }

  start() {
    Promise.all([loadStylesheet("live.css"), loadStylesheet("inference.css")]).then(() => (this.node.style.visibility = ""));
  }

  end() {
    clearTimeout(this.timer);
    this.node.remove();
  }

  update(data) {
    const shape = JSON.stringify([data.rows, data.columns, data.disabled]);
    if (shape !== this.shape) {
      this.shape = shape;
      this.build(data);
    }
    this.show();
  }

  build({ rows, columns, corner, disabled }) {
    this.node.style.setProperty("--columns", columns.length);
    this.cells = new Map();
    const grid = element("div", "inf-pick");
    grid.setAttribute("role", "group");
    grid.setAttribute("aria-label", "Cells to measure");
    const head = (label, keys, testid) => {
      const button = element("button", "inf-head", testid);
      button.type = "button";
      button.textContent = label;
      button.title = "All or none of them";
      button.disabled = disabled;
      button.onclick = () => this.toggle(keys);
      return button;
    };
    const all = rows.flatMap((row) => columns.map((column) => `${row.id}x${column.id}`));
    grid.append(head(corner, all, "pick-all"));
    for (const column of columns) grid.append(head(column.label, rows.map((row) => `${row.id}x${column.id}`), `pick-column-${column.id}`));
    for (const row of rows) {
      const side = head(row.label, columns.map((column) => `${row.id}x${column.id}`), `pick-row-${row.id}`);
      side.dataset.row = "";
      grid.append(side);
      for (const column of columns) {
        const key = `${row.id}x${column.id}`;
        const button = element("button", "inf-box", `pick-${key}`);
        button.type = "button";
        button.disabled = disabled;
        button.setAttribute("role", "checkbox");
        button.setAttribute("aria-label", `batch ${row.label}, ${column.name}`);
        button.onclick = () => this.toggle([key]);
        this.cells.set(key, button);
        grid.append(button);
      }
    }
    this.node.replaceChildren(grid);
  }

  toggle(keys) {
    const on = !keys.every((key) => this.chosen.has(key));
    for (const key of keys) on ? this.chosen.add(key) : this.chosen.delete(key);
    this.show();
    clearTimeout(this.timer); // several clicks in a row are one message
    this.timer = setTimeout(() => this.tell("cells", [...this.cells.keys()].filter((key) => this.chosen.has(key))), 250);
  }

  show() {
    for (const [key, button] of this.cells) button.setAttribute("aria-checked", String(this.chosen.has(key)));
  }
}

// --- a map --------------------------------------------------------------------------------------------------------

// One quantity over rows and columns. The shade is the place between the smallest and the largest on a logarithmic scale.
class HeatMap {
  constructor(view, { id, title, note, value, text, tone }) {
    Object.assign(this, { view, id, value, text, tone, shape: "", boxes: new Map() });
    this.node = element("section", "iso-card inf-card", `map-${id}`);
    this.node.setAttribute("aria-label", title);
    const top = element("div", "iso-top");
    this.title = element("div", "iso-title");
    this.title.textContent = title;
    top.append(this.title);
    const sub = element("div", "iso-sub");
    this.note = element("div", "iso-note");
    setText(this.note, note);
    sub.append(this.note);
    this.grid = element("div", "inf-map");
    this.node.append(top, sub, this.grid);
  }

  build({ rows, columns }) {
    this.boxes.clear();
    this.grid.style.setProperty("--columns", columns.length);
    this.grid.style.setProperty("--rows", rows.length);
    const label = (text, className) => {
      const node = element("div", className);
      node.textContent = text;
      return node;
    };
    const parts = [label("", "inf-corner"), ...columns.map(({ label: text }) => label(text, "inf-top"))];
    rows.forEach((row, r) => {
      parts.push(label(row.label, "inf-side"));
      columns.forEach((column, c) => {
        const box = element("button", "inf-cell", `${this.id}-${row.id}x${column.id}`);
        box.type = "button";
        const text = document.createElement("span");
        const done = element("i", "inf-done");
        box.append(text, done);
        box.onclick = () => this.view.open(this.view.cellAt(r, c)?.key);
        this.boxes.set(`${r},${c}`, { box, text, done });
        parts.push(box);
      });
    });
    this.grid.replaceChildren(...parts);
  }

  update() {
    const { view } = this;
    const shape = JSON.stringify([view.about.rows, view.about.columns]);
    if (shape !== this.shape) {
      this.shape = shape;
      this.build(view.about);
    }
    const shown = view.shownCells();
    const values = shown.map(this.value).filter((v) => v > 0);
    const [low, high] = [Math.log(Math.min(...values)), Math.log(Math.max(...values))];
    const at = new Map(shown.map((cell) => [`${cell.at[1]},${cell.at[2]}`, cell]));
    for (const [place, parts] of this.boxes) this.paint(parts, at.get(place), low, high);
  }

  paint({ box, text, done }, cell, low, high) {
    const { view } = this;
    const value = cell && this.value(cell);
    const known = value !== undefined && value !== null && value > 0;
    const share = !known ? 0 : high > low ? (Math.log(value) - low) / (high - low) : 0.5;
    setText(text, known ? this.text(value) : cell?.why ? "not run" : cell ? "" : "");
    box.style.setProperty("--share", (0.1 + 0.9 * share).toFixed(3));
    box.style.setProperty("--tone", this.tone);
    box.toggleAttribute("data-known", known);
    box.toggleAttribute("data-waits", Boolean(cell) && !known && !cell.why);
    box.toggleAttribute("data-none", !cell);
    box.toggleAttribute("data-over", Boolean(known && view.isOver(cell)));
    box.toggleAttribute("data-sweet", Boolean(cell) && cell.key === view.verdict.sweet);
    box.toggleAttribute("data-open", Boolean(cell) && cell.key === view.openKey);
    box.disabled = !known;
    const going = cell && !view.over && cell.rounds && cell.round < cell.rounds;
    done.style.width = going ? `${(100 * cell.round) / cell.rounds}%` : "0";
    box.style.setProperty("--sure", going ? String(0.55 + 0.45 * (cell.round / cell.rounds)) : "1");
    const words = !cell ? "not chosen" : known ? `${cell.label}: ${cell.words}` : cell.why ? `${cell.label}: not run. ${cell.why}` : `${cell.label}: not measured yet`;
    if (box.title !== words) {
      box.title = words;
      box.setAttribute("aria-label", words);
    }
  }
}

// --- charts -------------------------------------------------------------------------------------------------------

class Chart {
  // `draw` returns {lines, layout, state, value, note} or null where there is nothing to draw.
  constructor(view, { id, title, note = "", wide = false, tall = false, draw }) {
    Object.assign(this, { view, id, draw, drawn: "", mounted: false });
    this.node = element("section", "iso-card inf-card", `chart-${id}`);
    this.node.setAttribute("aria-label", title);
    this.node.toggleAttribute("data-wide", wide);
    const top = element("div", "iso-top");
    this.title = element("div", "iso-title");
    this.title.textContent = title;
    top.append(this.title);
    const sub = element("div", "iso-sub");
    this.note = element("div", "iso-note inf-note");
    setText(this.note, note);
    this.legend = element("div", "iso-legend");
    sub.append(this.note, this.legend);
    this.plot = element("div", "iso-plot", `plot-${id}`);
    this.plot.toggleAttribute("data-tall", tall);
    this.plot.dataset.empty = "";
    this.node.append(top, sub, this.plot);
    this.node.hidden = true;
  }

  async update(Plotly) {
    const found = this.draw(this.view);
    const first = this.node.hidden && found;
    this.node.hidden = !found;
    if (!found) return;
    if (found.note !== undefined) setText(this.note, found.note);
    if (found.title !== undefined) setText(this.title, found.title);
    this.showLegend(found.legend ?? []);
    const state = `${found.state}|${this.view.look.signature}`;
    if (state === this.drawn && !first) return;
    this.drawn = state;
    const figure = [found.lines, { ...this.frame(), ...found.layout }];
    if (this.mounted) await Plotly.react(this.plot, ...figure);
    else await this.mountPlot(Plotly, figure, found.click);
  }

  async mountPlot(Plotly, figure, click) {
    this.mounted = true;
    this.view.debug.mounts += 1;
    delete this.plot.dataset.empty;
    await Plotly.newPlot(this.plot, ...figure, { displayModeBar: false, showTips: false, scrollZoom: false });
    if (click) this.plot.on("plotly_click", (event) => click(event.points[0]));
  }

  showLegend(entries) {
    const said = JSON.stringify(entries);
    if (said === this.said) return;
    this.said = said;
    this.legend.replaceChildren(
      ...entries.map(({ name, color }) => {
        const entry = element("span", "iso-entry inf-entry");
        entry.textContent = name;
        entry.style.setProperty("--swatch", color);
        return entry;
      }),
    );
    this.legend.hidden = !entries.length;
  }

  frame() {
    const { look } = this.view;
    return {
      autosize: true,
      margin: { l: 52, r: 14, t: 14, b: 44 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: look.background,
      font: { family: look.font, size: 11, color: look.faint },
      showlegend: false,
      dragmode: look.touch ? false : "zoom", // a finger scrolls the page
      hovermode: "closest",
      uirevision: `${this.id} ${this.view.openKey} ${this.view.slice}`, // a zoom stays until another cell is looked at
      hoverlabel: { bgcolor: look.background, bordercolor: look.border, font: { family: look.font, size: 11.5, color: look.text } },
    };
  }
}

function axis(look, title, more = {}) {
  return {
    title: { text: title, standoff: 6, font: { size: 11 } }, showline: false, ticks: "", color: look.faint, gridcolor: look.grid,
    zeroline: false, automargin: true, ...more,
  };
}

const SECONDS = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10, 100, 1000];
// Ticks of a logarithmic axis of seconds in the units people say: 100 µs, 1 ms; ones, twos and fives where it is short.
function latencyTicks(low, high) {
  const every = high / low > 300 ? [1] : high / low > 20 ? [1, 3] : [1, 2, 5];
  const tickvals = SECONDS.flatMap((power) => every.map((k) => k * power)).filter((v) => v >= low / 3 && v <= high * 3);
  return { tickmode: "array", tickvals, ticktext: tickvals.map(shortLatency) };
}

function shortLatency(seconds) {
  if (seconds >= 0.9995) return `${+seconds.toPrecision(3)} s`;
  return seconds >= 0.9995e-3 ? `${+(seconds * 1e3).toPrecision(3)} ms` : `${+(seconds * 1e6).toPrecision(3)} µs`;
}

const COUNTS = [1e-2, 0.1, 1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];
function countTicks(low, high) {
  const every = high / low > 300 ? [1] : high / low > 20 ? [1, 3] : [1, 2, 5];
  const tickvals = COUNTS.flatMap((power) => every.map((k) => k * power)).filter((v) => v >= low / 3 && v <= high * 3);
  return { tickmode: "array", tickvals, ticktext: tickvals.map((v) => (v < 1 ? String(+v.toPrecision(2)) : shortCount(v))) };
}

function shortCount(value) {
  const power = Math.min(3, Math.floor(Math.log10(value * 1.0005) / 3));
  return `${+(value / 1000 ** power).toPrecision(3)}${["", "k", "M", "G"][power]}`;
}

// A standing line with its words at the top.
function standing(look, x, words, { color = look.faint, dash = "dash", log = true, side = "left", yref = "paper", y = 1 } = {}) {
  return {
    shape: { type: "line", x0: x, x1: x, yref, y0: 0, y1: y, line: { color, width: 1.2, dash }, layer: "below" },
    annotation: {
      x: log ? Math.log10(x) : x, yref, y, yanchor: "top", xanchor: side, xshift: side === "left" ? 3 : -3, showarrow: false,
      text: words, font: { color, size: 11, family: look.font }, bgcolor: fade(look.background, 0.8), borderpad: 1,
    },
  };
}

// The lines of a curve that have cells, each with its place among the colours.
function linesOf(view, cells) {
  const { about, look } = view;
  return about.lines
    .map((name, n) => ({
      name, own: cells.filter((cell) => cell.line === n), color: look.series[n % look.series.length],
      dash: DASHES[Math.floor(n / look.series.length) % DASHES.length],
    }))
    .filter(({ own }) => own.length);
}

const legendOf = (lines) => (lines.length > 1 ? lines.map(({ name, color }) => ({ name, color })) : []);

// Throughput against latency: a line for each thread count, precision or runtime, along batch sizes or rates.
function curve(view) {
  const { about, look } = view;
  const cells = view.shownCells().filter((cell) => cell.judged > 0 && cell.samples_per_s > 0);
  if (!cells.length || cells.some((cell) => cell.offered)) return null;
  const grouped = linesOf(view, cells);
  const lines = grouped.map(({ name, own, color, dash }) => {
    own.sort((a, b) => a.batch_size - b.batch_size);
    return {
      type: "scatter", x: own.map((cell) => cell.judged), y: own.map((cell) => cell.samples_per_s), mode: "lines+markers",
      line: { color, width: 1.6, dash }, name: literal(name),
      marker: { size: 8, color: own.map((cell) => (view.isOver(cell) ? look.background : color)), line: { color, width: 1.6 } },
      customdata: own.map((cell) => [cell.key]),
      text: own.map((cell) => `${literal(cell.label)}<br>${rate(cell.samples_per_s)} ${about.unit} · ${view.quantile} ${latency(cell.judged)}`),
      hovertemplate: "%{text}<extra></extra>",
    };
  });
  const sweet = cells.find((cell) => cell.key === view.verdict.sweet);
  if (sweet) {
    lines.push({
      type: "scatter", x: [sweet.judged], y: [sweet.samples_per_s], mode: "markers", hoverinfo: "skip",
      marker: { symbol: "circle-open", size: 19, color: look.text, line: { width: 2, color: look.text } },
    });
  }
  const xs = cells.map((cell) => cell.judged).concat(view.limitS ?? []);
  const ys = cells.map((cell) => cell.samples_per_s);
  const limit = view.limitS ? standing(look, view.limitS, `limit ${shortLatency(view.limitS)}`, { color: look.bad, side: view.limitS > Math.sqrt(Math.min(...xs) * Math.max(...xs)) ? "right" : "left" }) : null;
  const room = (values) => {
    const [low, high] = [Math.log10(Math.min(...values)), Math.log10(Math.max(...values))];
    const free = Math.max(0.08, 0.07 * (high - low));
    return [low - free, high + free];
  };
  return {
    lines,
    layout: {
      xaxis: axis(look, `Latency, ${view.quantile} (log scale)`, { type: "log", showgrid: false, range: room(xs), ...latencyTicks(Math.min(...xs), Math.max(...xs)) }),
      yaxis: axis(look, `Throughput (${about.unit}, log scale)`, { type: "log", range: room(ys), ...countTicks(Math.min(...ys), Math.max(...ys)) }),
      shapes: limit ? [limit.shape] : [],
      annotations: [
        ...(limit ? [{ ...limit.annotation, y: 0, yanchor: "bottom" }] : []), // the best cells are at the top
        ...(sweet ? [{ x: Math.log10(sweet.judged), y: Math.log10(sweet.samples_per_s), text: `<b>${literal(sweet.short)}</b>`, showarrow: false, yshift: 17, xanchor: sweetSide(sweet.judged, xs), font: { color: look.text, size: 11.5 }, bgcolor: fade(look.background, 0.8) }] : []),
      ],
    },
    legend: legendOf(grouped),
    state: JSON.stringify([view.version, view.slice, view.limitS, view.quantile, view.verdict.sweet]),
    click: (point) => point.customdata && view.open(point.customdata[0]),
  };
}

// Words beside a point lie towards the middle.
function sweetSide(x, xs) {
  const [low, high] = [Math.log(Math.min(...xs)), Math.log(Math.max(...xs))];
  const share = high > low ? (Math.log(x) - low) / (high - low) : 0.5;
  return share < 0.3 ? "left" : share > 0.7 ? "right" : "center";
}

// How many requests took how long.
function histogram(view) {
  const { detail, look } = view;
  if (!detail?.histogram) return null;
  const { low, high, n, kind } = detail.histogram;
  const color = look.series[0];
  const total = n.reduce((sum, v) => sum + v, 0);
  const ends = [low[0], high.at(-1)];
  const marks = detail.marks.map(([words, x], i) =>
    standing(look, x, words, { dash: "dot", y: 1 - 0.1 * (i % 3), color: look.text, side: x > Math.sqrt(ends[0] * ends[1]) ? "right" : "left" }));
  const inside = view.limitS && view.limitS > ends[0] / 1.5 && view.limitS < ends[1] * 1.5;
  if (inside) marks.push(standing(look, view.limitS, `limit ${shortLatency(view.limitS)}`, { color: look.bad, y: 0.6, side: "right" }));
  return {
    lines: [{
      // A line in steps: on a logarithmic axis a bar has no width of its own.
      type: "scatter", mode: "lines", x: [low[0], ...low, high.at(-1)], y: [0, ...n, 0], line: { color, width: 1, shape: "hv" }, fill: "tozeroy", fillcolor: fade(color, 0.45),
      text: ["", ...low.map((v, i) => `${latency(v)} to ${latency(high[i])}: ${whole(n[i])} of ${whole(total)}`), ""], hovertemplate: "%{text}<extra></extra>",
    }],
    layout: {
      xaxis: axis(look, `${capital(kind)} (log scale)`, { type: "log", showgrid: false, ...latencyTicks(...ends) }),
      yaxis: axis(look, "Requests", { rangemode: "tozero", nticks: 5 }),
      shapes: marks.map((mark) => mark.shape),
      annotations: marks.map((mark) => mark.annotation),
    },
    note: `${whole(total)} requests, the whole distribution; measured`,
    state: JSON.stringify([detail.key, detail.version, view.limitS]),
  };
}

// The cell's requests and the hardware, one below the other on the same seconds of the run.
function timeline(view) {
  const { detail, look } = view;
  if (!detail?.timeline?.x.length) return null;
  const { hardware } = detail;
  const lines = [{
    type: "scatter", mode: "markers", x: detail.timeline.x, y: detail.timeline.y, marker: { size: 3.5, color: look.series[0], opacity: 0.55 },
    text: detail.timeline.y.map(latency), hovertemplate: "%{text} at %{x:.2f} s<extra></extra>",
  }];
  const [low, high] = [Math.min(...detail.timeline.y), Math.max(...detail.timeline.y, view.limitS ?? 0)];
  const shown = [["system_cpu", "whole machine", 1], ["process_cpu", "this run, of one core", 2], ["gpu_utilization", "GPU busy", 3]].filter(([key]) => hardware[key]?.some((v) => v !== null));
  for (const [key, name, color] of shown) {
    lines.push({
      type: "scatter", mode: "lines", x: hardware.x, y: hardware[key], yaxis: "y2", name, connectgaps: false,
      line: { color: look.series[color % look.series.length], width: 1.5 }, hovertemplate: `${name} %{y:.0f} % at %{x:.1f} s<extra></extra>`,
    });
  }
  const watts = hardware.gpu_power?.some((v) => v !== null) ? "gpu_power" : hardware.cpu_power?.some((v) => v !== null) ? "cpu_power" : null;
  if (watts) {
    lines.push({ type: "scatter", mode: "lines", x: hardware.x, y: hardware[watts], yaxis: "y3", line: { color: look.series[4], width: 1.5 }, hovertemplate: "%{y:.0f} W at %{x:.1f} s<extra></extra>" });
  }
  const limit = view.limitS && view.limitS < high * 3 ? [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: view.limitS, y1: view.limitS, line: { color: look.bad, width: 1, dash: "dash" }, layer: "below" }] : [];
  const lanes = shown.length ? (watts ? 3 : 2) : watts ? 3 : 1;
  const domains = lanes === 3 ? [[0.52, 1], [0.26, 0.44], [0, 0.18]] : lanes === 2 ? [[0.42, 1], [0, 0.32]] : [[0, 1]];
  return {
    lines,
    layout: {
      margin: { l: 58, r: 14, t: 14, b: 40 },
      xaxis: axis(look, "Seconds of the run", { showgrid: false, anchor: "free", position: 0, domain: [0, 1], rangemode: "tozero" }),
      yaxis: axis(look, capital(detail.histogram?.kind ?? "latency"), { type: "log", domain: domains[0], ...latencyTicks(low, high) }),
      ...(domains[1] && { yaxis2: axis(look, "CPU (%)", { domain: domains[1], rangemode: "tozero", nticks: 3, fixedrange: true }) }),
      ...(domains[2] && { yaxis3: axis(look, "Power (W)", { domain: domains[2], rangemode: "tozero", nticks: 3, fixedrange: true }) }),
      shapes: limit,
    },
    legend: shown.length > 1 ? shown.map(([, name, color]) => ({ name, color: look.series[color % look.series.length] })) : [],
    note: detail.timeline.note,
    state: JSON.stringify([detail.key, detail.version, view.limitS]),
  };
}

// For each column a line of medians along the rows, with the 99th percentile dashed above it: of a text's first token, of
// each that follows, of arrivals.
function along(view, { read, x, xTitle, yTitle, xlog = true, state }) {
  const { look } = view;
  const cells = view.shownCells().filter((cell) => read(cell));
  if (!cells.length) return null;
  const grouped = linesOf(view, cells);
  const lines = grouped.flatMap(({ own, color }) => {
    own.sort((a, b) => x(a) - x(b));
    return [["p50", "solid"], ["p99", "dot"]].map(([quantile, dash], place) => ({
      type: "scatter", mode: "lines+markers", x: own.map(x), y: own.map((cell) => read(cell)[place]), line: { color, width: 1.6, dash }, marker: { color, size: 6 },
      customdata: own.map((cell) => [cell.key]), text: own.map((cell) => `${literal(cell.label)}<br>${quantile} ${latency(read(cell)[place])}`), hovertemplate: "%{text}<extra></extra>",
    }));
  });
  const ys = cells.flatMap((cell) => read(cell)).filter((v) => v > 0);
  const xs = cells.map(x);
  return {
    lines,
    layout: {
      xaxis: axis(look, xTitle, { type: xlog ? "log" : "linear", showgrid: false, ...(xlog ? { tickmode: "array", tickvals: [...new Set(xs)], ticktext: [...new Set(xs)].map(shortCount) } : { rangemode: "tozero" }) }),
      yaxis: axis(look, yTitle, { type: "log", ...latencyTicks(Math.min(...ys), Math.max(...ys)) }),
    },
    legend: legendOf(grouped),
    state: JSON.stringify([view.version, view.slice, state]),
    click: (point) => view.open(point.customdata[0]),
  };
}

const firstToken = (view) => along(view, { read: (cell) => cell.ttft, x: (cell) => cell.batch_size, xTitle: "Batch size (log scale)", yTitle: "Time to first token (log scale)" });
const eachToken = (view) => along(view, { read: (cell) => cell.tpot, x: (cell) => cell.batch_size, xTitle: "Batch size (log scale)", yTitle: "Time per output token (log scale)" });

// Latency from arrival to answer against how many arrive; beyond what the model can serve it grows without end.
function arrivals(view) {
  const found = along(view, { read: (cell) => cell.offered && [cell.p50, cell.p99], x: (cell) => cell.offered, xTitle: "Offered rate (requests/s)", yTitle: "Latency from arrival (log scale)", xlog: false, state: view.limitS });
  if (found && view.limitS) found.layout.shapes = [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: view.limitS, y1: view.limitS, line: { color: view.look.bad, width: 1, dash: "dash" }, layer: "below" }];
  return found;
}

// Times as fast as eager, a group of bars for each runtime.
function speedups(view) {
  const { ladder, look } = view;
  if (!ladder?.bars.length) return null;
  const lines = ladder.bars.map(({ name, labels, ratios }, n) => ({
    type: "bar", orientation: "h", name: literal(name), y: labels.map(literal), x: ratios, marker: { color: look.series[n % look.series.length] },
    text: ratios.map((v) => (v === null ? "" : `${threeDigits(v)} ×`)), textposition: "outside", textfont: { size: 11, color: look.text }, cliponaxis: false,
    hovertemplate: `%{y}, ${literal(name)}: %{text} as fast as eager<extra></extra>`,
  }));
  const groups = Math.max(...ladder.bars.map(({ labels }) => labels.length));
  return {
    lines,
    layout: {
      barmode: "group", bargap: 0.3, margin: { l: 96, r: 14, t: 8, b: 40 }, height: 64 + groups * (12 + 17 * lines.length),
      xaxis: axis(look, "p50 of eager by its own", { range: [0, 1.25 * Math.max(1, ...lines.flatMap(({ x }) => x))], showgrid: true, fixedrange: true, nticks: 5 }),
      yaxis: axis(look, "", { autorange: "reversed", showgrid: false, fixedrange: true }),
      shapes: [{ type: "line", x0: 1, x1: 1, yref: "paper", y0: 0, y1: 1, line: { color: look.text, width: 1, dash: "dot" } }],
    },
    legend: lines.length > 1 ? ladder.bars.map(({ name }, n) => ({ name, color: look.series[n % look.series.length] })) : [],
    state: JSON.stringify(ladder.bars),
  };
}

// --- the view ---------------------------------------------------------------------------------------------------

class View extends PollingView {
  constructor(parent, data) {
    super();
    Object.assign(this, { parent, key: data.key, runs: data.runs, plotlyVersion: data.plotly_version, sawAlive: data.alive });
    Object.assign(this, { cells: new Map(), about: null, answer: null, verdict: {}, ladder: null, detail: null });
    Object.assign(this, { cursorText: "", version: 0, slice: 0, receivedAt: 0, over: false });
    Object.assign(this, { openKey: data.cell ?? null, limitS: data.limit_s, quantile: data.quantile });
    this.build();
  }

  build() {
    this.node = this.area = element("div", "iso-live iso-inference", "inference");
    this.node.style.visibility = "hidden"; // until the stylesheet is there
    this.node.isoflop = this.debug;
    const head = element("div", "iso-head");
    this.badge = element("span", "iso-badge", "inference-status");
    this.badge.setAttribute("role", "status");
    this.progress = element("div", "iso-progress", "inference-progress");
    this.progress.setAttribute("role", "progressbar");
    this.progress.setAttribute("aria-label", "Progress");
    this.bar = document.createElement("div");
    this.progress.append(this.bar);
    this.left = element("span", "iso-left");
    this.facts = element("span", "iso-facts", "inference-facts");
    head.append(this.badge, this.progress, this.left, this.facts);
    this.notice = element("p", "iso-notice", "inference-notice");
    this.notice.setAttribute("role", "alert");
    this.words = element("section", "iso-card inf-verdict", "verdict");
    this.sentence = element("p", "inf-sentence", "sentence");
    this.besides = element("ul", "inf-besides", "besides");
    this.words.append(this.sentence, this.besides);
    this.slices = element("div", "inf-slices", "slices");
    this.slices.setAttribute("role", "group");
    this.slices.setAttribute("aria-label", "Software and precision shown");
    this.table = element("section", "iso-card inf-ladder", "ladder");
    this.maps = [
      new HeatMap(this, { id: "throughput", title: "Throughput", note: "measured; a click opens a cell", value: (cell) => cell.samples_per_s, text: rate, tone: "var(--st-primary-color)" }),
      new HeatMap(this, { id: "latency", title: "Latency", note: "", value: (cell) => cell.judged, text: latency, tone: "var(--st-orange-color)" }),
    ];
    const chart = (options) => new Chart(this, options);
    this.curve = chart({ id: "curve", title: "Throughput against latency", note: "up and to the left is better", tall: true, draw: curve });
    this.ttft = chart({ id: "ttft", title: "Time to first token", note: "prefill: line p50, dotted p99; measured", tall: true, draw: firstToken });
    this.tpot = chart({ id: "tpot", title: "Time per output token", note: "decode with a KV cache: line p50, dotted p99; measured", tall: true, draw: eachToken });
    this.arrivals = chart({ id: "arrivals", title: "Latency against offered rate", note: "from arrival to answer, waiting included: line p50, dotted p99; measured", tall: true, wide: true, draw: arrivals });
    this.speedups = chart({ id: "speedups", title: "Speed-up over eager", note: "same weights, same requests; derived", draw: speedups });
    this.speedups.plot.toggleAttribute("data-free", true);
    this.histogram = chart({ id: "histogram", title: "How long requests took", tall: true, draw: histogram });
    this.timeline = chart({ id: "timeline", title: "When they took it", wide: true, tall: true, draw: timeline });
    this.plots = [this.curve, this.ttft, this.tpot, this.arrivals, this.speedups, this.histogram, this.timeline];
    this.grid = element("div", "iso-grid inf-grid");
    this.grid.append(...this.maps.map((map) => map.node), this.curve.node, this.ttft.node, this.tpot.node, this.arrivals.node, this.speedups.node);
    this.box = element("section", "inf-detail", "detail");
    const line = element("div", "inf-detail-top");
    this.detailTitle = element("h3", "inf-detail-title", "detail-title");
    this.closeButton = element("button", "iso-reset", "detail-close");
    this.closeButton.type = "button";
    this.closeButton.textContent = "Close";
    this.closeButton.onclick = () => this.open(null);
    line.append(this.detailTitle, this.closeButton);
    this.detailFacts = element("dl", "inf-facts", "detail-facts");
    const detailGrid = element("div", "iso-grid inf-grid");
    detailGrid.append(this.histogram.node, this.timeline.node);
    this.box.append(line, this.detailFacts, detailGrid);
    this.node.append(head, this.notice, this.words, this.slices, this.grid, this.box, this.table);
    for (const part of [this.progress, this.left, this.notice, this.words, this.slices, this.table, this.box, this.grid]) part.hidden = true;
    this.parent.append(this.node);
  }

  start() {
    this.begin(["live.css", "inference.css"], 500);
  }

  charts() {
    return this.plots;
  }

  // Called with each rerun of the page: what the page knows and this view does not decide itself.
  update(data) {
    const before = JSON.stringify([this.limitS, this.quantile, this.openKey]);
    this.limitS = data.limit_s;
    this.quantile = data.quantile;
    if (data.cell !== this.toldCell) {
      this.toldCell = data.cell; // another link; what was clicked here comes back as what it already is
      this.openKey = data.cell ?? null;
    }
    this.look = readLook(this.node);
    this.node.style.setProperty("--inf-most", isDark(this.look.background) ? "52%" : "70%"); // numbers stay readable on it
    const asked = JSON.stringify([this.limitS, this.quantile, this.openKey]) !== before || !this.answer;
    if (asked) this.ask();
    else this.paint().catch(() => {}); // without Plotly yet; the poll says so
  }

  // --- data

  // Something else is wanted than at the last poll, of a run that may be over.
  ask() {
    this.wanted = true;
    this.poll();
  }

  asks() {
    return !this.gone && (!this.over || this.wanted || this.failures > 0);
  }

  rest() {
    if (this.wanted) return 0;
    return this.version ? ALIVE_MS : EAGER_MS;
  }

  async news() {
    this.wanted = false;
    const { found, answer } = await this.fetch("api/inference", {
      runs: this.runs.join(","),
      after: this.cursorText,
      limit_s: this.limitS && String(this.limitS),
      quantile: this.quantile,
      cell: this.openKey,
      held: this.openKey && this.detail?.key === this.openKey && String(this.detail.version),
    });
    if (found) return this.take(answer);
    this.gone = true;
    this.say(answer.error);
  }

  settled() {
    this.notice.hidden = !this.gone;
  }

  take(answer) {
    if (answer.reset) {
      this.cells.clear();
      this.detail = null;
      this.debug.loads += 1;
    }
    if (answer.about) this.about = answer.about;
    for (const cell of answer.cells ?? []) this.cells.set(cell.key, cell);
    if (answer.cells?.length) this.version += 1;
    if (answer.ladder) this.ladder = answer.ladder;
    if (answer.detail) this.detail = answer.detail;
    if (this.detail && this.detail.key !== this.openKey) this.detail = null;
    this.verdict = answer.verdict ?? {};
    this.answer = answer;
    this.receivedAt = performance.now();
    this.cursorText = answer.cursor;
    this.over = answer.over;
    this.sawAlive ||= !answer.over;
    if (this.about && this.slice >= this.about.slices.length) this.slice = 0;
  }

  shownCells() {
    return [...this.cells.values()]
      .filter((cell) => cell.at[0] === this.slice)
      .map((cell) => Object.assign(cell, { judged: cell[this.quantile] }));
  }

  cellAt(row, column) {
    return this.shownCells().find(({ at }) => at[1] === row && at[2] === column);
  }

  isOver(cell) {
    return Boolean(this.limitS) && cell[this.quantile] > this.limitS;
  }

  open(key) {
    const wanted = key && key !== this.openKey ? key : null; // a second click closes it
    if (wanted === this.openKey) return;
    this.openKey = wanted;
    this.toldCell = wanted;
    this.tell("cell", wanted);
    if (wanted) this.ask();
    else this.detail = null;
    this.paint();
  }

  // --- picture

  async paint() {
    if (!this.answer || this.ended || !this.look) return;
    this.showHead();
    this.showVerdict();
    const any = this.about && this.cells.size > 0;
    this.grid.hidden = !any;
    if (any) {
      this.showSlices();
      this.arrange();
      setText(this.maps[1].title, `Latency, ${this.quantile}`);
      const limit = this.limitS ? `grey: over ${shortLatency(this.limitS)}` : "no limit";
      setText(this.maps[1].note, `measured; ${limit}`);
      for (const map of this.maps) map.update();
      this.showLadder();
      this.showDetail();
    }
    const Plotly = await loadPlotly(this.plotlyVersion);
    if (this.ended || this.dragging) return;
    if (any) {
      for (const chart of this.plots) {
        await chart.update(Plotly);
        if (this.ended) return;
      }
    }
    this.debug.updates += 1;
    if (!document.hidden) await new Promise(requestAnimationFrame);
    if (this.over && this.sawAlive && !this.ended) {
      this.sawAlive = false; // said once
      this.onEnd(this.answer.status);
    }
  }

  resize() {
    for (const { mounted, plot, node } of this.plots) if (mounted && !node.hidden) window.Plotly.Plots.resize(plot);
  }

  showHead() {
    const { status, over, preparing, progress, elapsed_s: elapsed, left_s: left, doing } = this.answer;
    this.badge.dataset.status = status;
    setText(this.badge, capital(status));
    this.progress.hidden = progress === null || over;
    this.bar.style.width = `${100 * (progress ?? 0)}%`;
    this.progress.setAttribute("aria-valuenow", String(Math.round(100 * (progress ?? 0))));
    const words = preparing
      ? preparingText(preparing, elapsed)
      : over ? (elapsed ? `after ${duration(elapsed)}` : "") : left === null ? (doing ?? "") : `about ${left < 59.5 ? `${Math.max(1, Math.round(left))} s` : duration(left)} left`;
    setText(this.left, words);
    this.left.hidden = !words;
    this.showFacts();
  }

  showFacts() {
    if (!this.answer) return;
    const { over, age_s: age, doing } = this.answer;
    const facts = [];
    if (!over && doing) facts.push(doing);
    if (!over && age !== null) facts.push(`last update ${duration(age + (performance.now() - this.receivedAt) / 1000)} ago`);
    setText(this.facts, facts.join(" · "));
  }

  showVerdict() {
    const { sentence, besides = [], waits } = this.verdict;
    this.words.hidden = !sentence;
    this.words.toggleAttribute("data-waits", Boolean(waits));
    setText(this.sentence, sentence ?? "");
    const said = besides.join("\n");
    if (said === this.saidBesides) return;
    this.saidBesides = said;
    this.besides.replaceChildren(...besides.map((text) => Object.assign(document.createElement("li"), { textContent: text })));
  }

  // What was measured comes first: rates as a curve, a ladder as bars.
  arrange() {
    const { kind } = this.about;
    if (kind === this.arranged) return;
    this.arranged = kind;
    const [throughput, slowness] = this.maps.map((map) => map.node);
    const order = {
      matrix: [throughput, slowness, this.curve.node],
      arrivals: [this.arrivals.node, slowness],
      ladder: [this.speedups.node, this.curve.node, throughput, slowness],
    }[kind];
    const rest = [this.ttft, this.tpot, this.speedups, this.arrivals, this.curve].map((chart) => chart.node);
    this.grid.dataset.kind = kind;
    throughput.hidden = kind === "arrivals"; // as many as arrive
    this.grid.append(...order, ...rest.filter((node) => !order.includes(node)));
  }

  showSlices() {
    const { slices } = this.about;
    this.slices.hidden = slices.length < 2;
    const state = JSON.stringify([slices, this.slice]);
    if (this.slices.hidden || state === this.saidSlices) return;
    this.saidSlices = state;
    this.slices.replaceChildren(
      ...slices.map(({ label }, n) => {
        const button = element("button", "inf-slice", `slice-${n}`);
        button.type = "button";
        button.textContent = label;
        button.setAttribute("aria-pressed", String(n === this.slice));
        button.onclick = () => {
          this.slice = n;
          this.paint();
        };
        return button;
      }),
    );
  }

  // One row a runtime; what did not run says why in its place.
  showLadder() {
    const { ladder } = this;
    this.table.hidden = !ladder;
    const wanted = this.about.kind === "ladder" ? this.slices : this.box; // what a ladder was measured for comes first
    if (ladder && this.table.previousElementSibling !== wanted) wanted.after(this.table);
    const state = JSON.stringify(ladder);
    if (!ladder || state === this.saidLadder) return;
    this.saidLadder = state;
    const table = document.createElement("table");
    const head = table.createTHead().insertRow();
    for (const title of ladder.columns) head.append(Object.assign(document.createElement("th"), { textContent: title, scope: "col" }));
    const body = table.createTBody();
    for (const { name, values, why } of ladder.rows) {
      const row = body.insertRow();
      row.append(Object.assign(document.createElement("th"), { textContent: name, scope: "row" }));
      for (const value of values) row.insertCell().textContent = value;
      if (why) {
        const line = body.insertRow();
        line.className = "inf-why";
        const cell = line.insertCell();
        cell.colSpan = ladder.columns.length;
        cell.append(Object.assign(document.createElement("div"), { textContent: why }));
      }
    }
    const title = element("div", "iso-title");
    title.textContent = "Software ladder: the same weights, another way to run them";
    const scroll = element("div", "inf-scroll");
    scroll.append(table);
    const note = element("div", "iso-words");
    note.textContent = ladder.note;
    this.table.replaceChildren(title, scroll, note);
  }

  showDetail() {
    const { detail } = this;
    this.box.hidden = !detail;
    if (!detail) return;
    setText(this.detailTitle, detail.title);
    const state = JSON.stringify(detail.facts);
    if (state === this.saidFacts) return;
    this.saidFacts = state;
    this.detailFacts.replaceChildren(
      ...detail.facts.map(([title, value, how]) => {
        const fact = document.createElement("div");
        fact.title = how;
        fact.append(
          Object.assign(document.createElement("dt"), { textContent: title }),
          Object.assign(document.createElement("dd"), { textContent: value }),
          Object.assign(element("dd", "inf-how"), { textContent: how }),
        );
        return fact;
      }),
    );
  }
}
