// The maps and charts of an inference run. Each function from `curve` on returns the figure of one chart.

const VERSION = new URL(import.meta.url).searchParams.get("v") ?? "";
const load = (name) => import(new URL(`${name}?v=${VERSION}`, import.meta.url).href); // a static import would lose the version
const { capital, count, element, fade, literal, setText, textButton, threeDigits, whole, withText } = await load("common.js");
const { Card } = await load("card.js");

export const rate = (value) => count(value < 100 ? value : Math.round(value));

// 812 µs, 3.10 ms, 1.20 s (as in engine/common/units.py).
export function latency(seconds) {
  if (seconds >= 1) return `${threeDigits(seconds)} s`;
  return seconds >= 1e-3 ? `${threeDigits(seconds * 1e3)} ms` : `${threeDigits(seconds * 1e6)} µs`;
}

const DASHES = ["solid", "dash", "dot", "dashdot"];

// --- a map --------------------------------------------------------------------------------------------------------

// One quantity over rows and columns. The shade shows where a value lies between the smallest and the largest, on a
// logarithmic scale.
export class HeatMap extends Card {
  constructor(view, { id, title, note, value, text, tone }) {
    super(view, { title, note }, { id });
    Object.assign(this, { id, value, text, tone, shape: "", boxes: new Map(), grid: element("div", "inf-map") });
    this.node.dataset.testid = `map-${id}`;
    this.node.classList.add("inf-card");
    this.node.replaceChildren(this.top, this.sub, this.grid);
  }

  build({ rows, columns }) {
    this.boxes.clear();
    this.grid.style.setProperty("--columns", columns.length);
    this.grid.style.setProperty("--rows", rows.length);
    const label = (text, className) => withText("div", className, text);
    const parts = [label("", "inf-corner"), ...columns.map(({ label: text }) => label(text, "inf-top"))];
    rows.forEach((row, r) => {
      parts.push(label(row.label, "inf-side"));
      columns.forEach((column, c) => {
        const box = textButton("inf-cell", "", `${this.id}-${row.id}x${column.id}`, () => this.view.open(this.view.cellAt(r, c)?.key));
        const text = document.createElement("span");
        const done = element("i", "inf-done");
        box.append(text, done);
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
    setText(text, known ? this.text(value) : cell?.why ? "not run" : "");
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

// --- a chart ------------------------------------------------------------------------------------------------------

export class Chart extends Card {
  // `figure(view)` returns {lines, layout, state, note, title, legend, click}, or null if there is nothing to draw.
  constructor(view, { id, title, note = "", wide = false, tall = false, figure }) {
    super(view, { title, note }, { id });
    this.figure = figure;
    this.node.classList.add("inf-card");
    this.node.toggleAttribute("data-wide", wide);
    this.note.classList.add("inf-note");
    this.plot.toggleAttribute("data-tall", tall);
    this.words.remove();
    this.node.hidden = true;
  }

  async update(Plotly) {
    const found = this.figure(this.view);
    if (this.node.hidden) this.shown = ""; // draw it again, because it had no size while it was hidden
    this.node.hidden = !found;
    if (!found) return;
    if (found.note !== undefined) setText(this.note, found.note);
    if (found.title !== undefined) setText(this.title, found.title);
    const legend = found.legend ?? [];
    this.legend.hidden = !legend.length;
    this.showLegend(legend.map(({ name, color }) => ({ name, swatch: color })));
    this.click = found.click;
    await this.draw(Plotly, found.state, () => [found.lines, { ...this.frame({
      margin: { l: 52, r: 14, t: 14, b: 44 },
      hovermode: "closest",
      uirevision: `${this.chart.title} ${this.view.openKey} ${this.view.slice}`, // a zoom stays until another cell is opened
    }), ...found.layout }]);
  }

  // These axes are not shared: Plotly itself zooms them.
  doubleClick() {
    return "reset+autosize";
  }

  listen() {
    this.plot.on("plotly_click", (event) => this.click?.(event.points[0]));
  }
}

function axis(look, title, more = {}) {
  return {
    title: { text: title, standoff: 6, font: { size: 11 } }, showline: false, ticks: "", color: look.faint, gridcolor: look.grid,
    zeroline: false, automargin: true, ...more,
  };
}

const SECONDS = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10, 100, 1000];
// Ticks of a logarithmic axis of seconds in the units people use: 100 µs, 1 ms.
const latencyTicks = (low, high) => logTicks(SECONDS, shortLatency, low, high);

// A short axis also gets ticks at 3, or at 2 and 5.
function logTicks(powers, text, low, high) {
  const every = high / low > 300 ? [1] : high / low > 20 ? [1, 3] : [1, 2, 5];
  const tickvals = powers.flatMap((power) => every.map((k) => k * power)).filter((v) => v >= low / 3 && v <= high * 3);
  return { tickmode: "array", tickvals, ticktext: tickvals.map(text) };
}

export function shortLatency(seconds) {
  if (seconds >= 0.9995) return `${+seconds.toPrecision(3)} s`;
  return seconds >= 0.9995e-3 ? `${+(seconds * 1e3).toPrecision(3)} ms` : `${+(seconds * 1e6).toPrecision(3)} µs`;
}

const COUNTS = [1e-2, 0.1, 1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];
const countTicks = (low, high) => logTicks(COUNTS, (v) => (v < 1 ? String(+v.toPrecision(2)) : shortCount(v)), low, high);

function shortCount(value) {
  const power = Math.min(3, Math.floor(Math.log10(value * 1.0005) / 3));
  return `${+(value / 1000 ** power).toPrecision(3)}${["", "k", "M", "G"][power]}`;
}

// A vertical line with its label at the top.
function verticalLine(look, x, words, { color = look.faint, dash = "dash", log = true, side = "left", yref = "paper", y = 1 } = {}) {
  return {
    shape: { type: "line", x0: x, x1: x, yref, y0: 0, y1: y, line: { color, width: 1.2, dash }, layer: "below" },
    annotation: {
      x: log ? Math.log10(x) : x, yref, y, yanchor: "top", xanchor: side, xshift: side === "left" ? 3 : -3, showarrow: false,
      text: words, font: { color, size: 11, family: look.font }, bgcolor: fade(look.background, 0.8), borderpad: 1,
    },
  };
}

// The lines that have measured cells, each with its colour and dash.
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

// --- the figures --------------------------------------------------------------------------------------------------

// Throughput against latency: a line for each thread count, precision or runtime, along batch sizes or rates.
export function curve(view) {
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
  const limit = view.limitS ? verticalLine(look, view.limitS, `limit ${shortLatency(view.limitS)}`, { color: look.bad, side: view.limitS > Math.sqrt(Math.min(...xs) * Math.max(...xs)) ? "right" : "left" }) : null;
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
        ...(limit ? [{ ...limit.annotation, y: 0, yanchor: "bottom" }] : []), // because the best cells are at the top
        ...(sweet ? [{ x: Math.log10(sweet.judged), y: Math.log10(sweet.samples_per_s), text: `<b>${literal(sweet.short)}</b>`, showarrow: false, yshift: 17, xanchor: sweetSide(sweet.judged, xs), font: { color: look.text, size: 11.5 }, bgcolor: fade(look.background, 0.8) }] : []),
      ],
    },
    legend: legendOf(grouped),
    state: JSON.stringify([view.version, view.slice, view.limitS, view.quantile, view.verdict.sweet]),
    click: (point) => point.customdata && view.open(point.customdata[0]),
  };
}

// A label beside a point lies towards the middle of the chart.
function sweetSide(x, xs) {
  const [low, high] = [Math.log(Math.min(...xs)), Math.log(Math.max(...xs))];
  const share = high > low ? (Math.log(x) - low) / (high - low) : 0.5;
  return share < 0.3 ? "left" : share > 0.7 ? "right" : "center";
}

// The distribution of the latencies.
export function histogram(view) {
  const { detail, look } = view;
  if (!detail?.histogram) return null;
  const { low, high, n, kind } = detail.histogram;
  const color = look.series[0];
  const total = n.reduce((sum, v) => sum + v, 0);
  const ends = [low[0], high.at(-1)];
  const marks = detail.marks.map(([words, x], i) =>
    verticalLine(look, x, words, { dash: "dot", y: 1 - 0.1 * (i % 3), color: look.text, side: x > Math.sqrt(ends[0] * ends[1]) ? "right" : "left" }));
  const inside = view.limitS && view.limitS > ends[0] / 1.5 && view.limitS < ends[1] * 1.5;
  if (inside) marks.push(verticalLine(look, view.limitS, `limit ${shortLatency(view.limitS)}`, { color: look.bad, y: 0.6, side: "right" }));
  return {
    lines: [{
      // A stepped line, because a bar has no width of its own on a logarithmic axis.
      type: "scatter", mode: "lines", x: [low[0], ...low, high.at(-1)], y: [0, ...n, 0], line: { color, width: 1, shape: "hv" }, fill: "tozeroy", fillcolor: fade(color, 0.45),
      text: ["", ...low.map((v, i) => `${latency(v)} to ${latency(high[i])}: ${whole(n[i])} of ${whole(total)}`), ""], hovertemplate: "%{text}<extra></extra>",
    }],
    layout: {
      xaxis: axis(look, `${capital(kind)} (log scale)`, { type: "log", showgrid: false, ...latencyTicks(...ends) }),
      yaxis: axis(look, "Requests", { rangemode: "tozero", nticks: 5 }),
      shapes: marks.map((mark) => mark.shape),
      annotations: marks.map((mark) => mark.annotation),
    },
    note: `${whole(total)} requests; measured`,
    state: JSON.stringify([detail.key, detail.version, view.limitS]),
  };
}

// The latency limit across a chart.
function limitLine({ limitS, look }) {
  return { type: "line", xref: "paper", x0: 0, x1: 1, y0: limitS, y1: limitS, line: { color: look.bad, width: 1, dash: "dash" }, layer: "below" };
}

// The cell's requests above the hardware's readings, on the same time axis.
export function timeline(view) {
  const { detail, look } = view;
  if (!detail?.timeline?.x.length) return null;
  const { hardware } = detail;
  const lines = [{
    type: "scatter", mode: "markers", x: detail.timeline.x, y: detail.timeline.y, marker: { size: 3.5, color: look.series[0], opacity: 0.55 },
    text: detail.timeline.y.map(latency), hovertemplate: "%{text} at %{x:.2f} s<extra></extra>",
  }];
  const [low, high] = [Math.min(...detail.timeline.y), Math.max(...detail.timeline.y, view.limitS ?? 0)];
  const shown = [["system_cpu", "whole machine", 1], ["process_cpu", "this run, % of one core", 2], ["gpu_utilization", "GPU utilization", 3]].filter(([key]) => hardware[key]?.some((v) => v !== null));
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
  const limit = view.limitS && view.limitS < high * 3 ? [limitLine(view)] : [];
  const lanes = shown.length ? (watts ? 3 : 2) : watts ? 3 : 1;
  const domains = lanes === 3 ? [[0.52, 1], [0.26, 0.44], [0, 0.18]] : lanes === 2 ? [[0.42, 1], [0, 0.32]] : [[0, 1]];
  return {
    lines,
    layout: {
      margin: { l: 58, r: 14, t: 14, b: 40 },
      xaxis: axis(look, "Time in the run (s)", { showgrid: false, anchor: "free", position: 0, domain: [0, 1], rangemode: "tozero" }),
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

// For each column a line of medians along the rows, and a dotted line of 99th percentiles.
function quantileLines(view, { read, x, xTitle, yTitle, xlog = true, state }) {
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

export const firstToken = (view) => quantileLines(view, { read: (cell) => cell.ttft, x: (cell) => cell.batch_size, xTitle: "Batch size (log scale)", yTitle: "Time to first token (log scale)" });
export const eachToken = (view) => quantileLines(view, { read: (cell) => cell.tpot, x: (cell) => cell.batch_size, xTitle: "Batch size (log scale)", yTitle: "Time per output token (log scale)" });

// Latency from arrival to answer against the rate of arrivals; above the rate that the model can serve it grows without limit.
export function arrivals(view) {
  const found = quantileLines(view, { read: (cell) => cell.offered && [cell.p50, cell.p99], x: (cell) => cell.offered, xTitle: "Offered rate (requests/s)", yTitle: "Latency from arrival (log scale)", xlog: false, state: view.limitS });
  if (found && view.limitS) found.layout.shapes = [limitLine(view)];
  return found;
}

// The speed-up over eager: a group of bars for each runtime.
export function speedups(view) {
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
      xaxis: axis(look, "Speed-up (p50 latency)", { range: [0, 1.25 * Math.max(1, ...lines.flatMap(({ x }) => x))], showgrid: true, fixedrange: true, nticks: 5 }),
      yaxis: axis(look, "", { autorange: "reversed", showgrid: false, fixedrange: true }),
      shapes: [{ type: "line", x0: 1, x1: 1, yref: "paper", y0: 0, y1: 1, line: { color: look.text, width: 1, dash: "dot" } }],
    },
    legend: lines.length > 1 ? ladder.bars.map(({ name }, n) => ({ name, color: look.series[n % look.series.length] })) : [],
    state: JSON.stringify(ladder.bars),
  };
}
