// The live view of one run: a header line and a grid of charts, fed by polling the server for the points it lacks.
//
// Measured: a redraw of one Plotly chart costs 20-28 ms whatever it holds below 10,000 points, so the lever is how many
// charts are drawn how often. A chart is mounted once and then only redrawn, with ranges that are ours: zoom, hidden
// traces and scale are state of this view and survive every update.

const VERSION = new URL(import.meta.url).searchParams.get("v") ?? "";
const {
  PollingView, count, draw, duration, element, explain, explained, extremes, include, keep, loadPlotly, loadStylesheet, lossText,
  preparingText, readLook, roundUp, setText, smooth, threeDigits, timeTicks, whole, yRange,
} = await import(new URL(`common.js?v=${VERSION}`, import.meta.url).href); // a static import would lose the version
const ALIVE_MS = 500;
const EAGER_MS = 150; // until the first point: someone has just pressed Run
const MOST_POINTS = 2000; // per trace; then the whole run is fetched anew, thinned

// --- what Streamlit calls ---------------------------------------------------------------------------------------

export function mount({ data, parentElement, setTriggerValue }) {
  const fits = (view) => view.runId === data.run_id;
  return keep(parentElement, fits, () => new View(parentElement, data), (view) => {
    view.onEnd = (status) => setTriggerValue("ended", status);
    view.restyle();
  });
}

// For a page from which a run may be started: fetch what its charts need, and draw one out of sight, so that the first
// points after a click do not wait for 5 MB of script to load and to be compiled.
export async function preload({ data }) {
  await Promise.all([loadStylesheet("live.css"), loadPlotly(data.plotly_version)]);
  await new Promise((resolve) => (window.requestIdleCallback ?? setTimeout)(resolve));
  const plot = document.createElement("div");
  const line = { x: [0, 1], y: [0, 1], mode: "lines" };
  await window.Plotly.newPlot(plot, [line], { width: 300, height: 200 }, { displayModeBar: false });
  window.Plotly.purge(plot);
}

// --- the charts -------------------------------------------------------------------------------------------------

// A card's `traces` are drawn in order. `color` counts in the theme's categorical colours, `smooth` names the means a
// smooth line goes through, `target` what a run's target must be about to be drawn here. Above `logFrom` between the
// largest and the smallest value an axis is logarithmic by itself.
const CHARTS = [
  {
    id: "loss",
    title: "Training loss",
    logFrom: 1e4,
    target: "test_loss",
    traces: [
      { key: "loss", name: "each step", color: 0, raw: true },
      { key: "loss_smooth", smooth: "loss_mean", name: "smoothed", color: 0 },
      { key: "test_loss", name: "test", color: 1, sparse: true },
    ],
    hover: ".4g",
    value: ({ current, steps }) => (current.loss === null ? (steps ? ["NaN", ""] : null) : [lossText(current.loss), ""]),
  },
  {
    id: "accuracy",
    title: "Test accuracy",
    textTitle: "Next-character accuracy",
    note: "on held-out examples",
    target: "test_accuracy",
    traces: [{ key: "accuracy", name: "accuracy", color: 0, sparse: true, factor: 100 }],
    hover: ".2f",
    unit: " %",
    most: 100,
    value: ({ current }) => {
      const ratio = current.test_accuracy; // never rounded up to 100: one mistake is a mistake
      return ratio === null ? null : [(100 * (ratio < 1 ? Math.min(ratio, 0.9999) : ratio)).toFixed(2), "%"];
    },
  },
  {
    id: "throughput",
    title: "Throughput",
    note: "training time only",
    traces: [{ key: "throughput", name: "throughput", color: 0 }],
    hover: ".4s",
    unit: " samples/s",
    tick: "~s",
    fromZero: true,
    flaw: ({ busy }) => busy && ["machine was busy", busy],
    value: ({ current }) => (current.samples_per_s === null ? null : [count(current.samples_per_s), "samples/s"]),
  },
  {
    id: "grad_norm",
    title: "Gradient norm",
    logFrom: 100,
    shown: ({ answer }, all) => all.length > 0 || !answer?.over,
    traces: [
      { key: "grad_norm", name: "measured", color: 0, raw: true },
      { key: "grad_norm_smooth", smooth: "grad_norm_mean", name: "smoothed", color: 0 },
    ],
    hover: ".4g",
    fromZero: true,
    value: (_, last) => (last.grad_norm_smooth === undefined ? null : [lossText(last.grad_norm_smooth), ""]),
  },
  {
    id: "lr",
    title: "Learning rate",
    shown: ({ about }) => about.lr_moves,
    traces: [{ key: "lr", name: "learning rate", color: 0 }],
    hover: ".3~g",
    tick: "~g",
    wide: true,
    fromZero: true,
    value: (_, last) => (last.lr === undefined ? null : [String(+last.lr.toPrecision(3)), ""]),
  },
  {
    id: "memory",
    title: "Memory",
    note: "whole process, includes PyTorch",
    reading: "process_memory_bytes",
    bytes: true,
    traces: [
      { key: "process_memory", name: "whole process, includes PyTorch", color: 0 },
      { key: "gpu_memory", name: "GPU", color: 1, optional: true },
    ],
    hover: ".4g",
    fromZero: true,
  },
  {
    id: "cpu",
    title: "CPU",
    reading: "process_cpu_percent",
    traces: [
      { key: "process_cpu", name: "this run, of one core", color: 0 },
      { key: "system_cpu", name: "whole machine", color: 1 },
    ],
    hover: ".0f",
    unit: " %",
    fromZero: true,
    least: 100,
    value: (_, last) => (last.process_cpu === undefined ? null : [Math.round(last.process_cpu), "%"]),
  },
  {
    id: "gpu",
    title: "GPU",
    note: "share of time busy",
    reading: "gpu_utilization_percent",
    traces: [{ key: "gpu_utilization", name: "busy", color: 0 }],
    hover: ".0f",
    unit: " %",
    fromZero: true,
    least: 100,
    value: (_, last) => (last.gpu_utilization === undefined ? null : [Math.round(last.gpu_utilization), "%"]),
  },
  {
    id: "power",
    title: "Power",
    note: "all programs on the device",
    reading: ({ gpu }) => (gpu ? "gpu_power_w" : "cpu_power_w"),
    traces: [
      { key: "gpu_power", name: "GPU board", color: 0, optional: true },
      { key: "cpu_power", name: "CPU packages", color: 0, optional: true },
    ],
    hover: ".3~f",
    unit: " W",
    fromZero: true,
    value: (_, last) => {
      const watts = last.gpu_power ?? last.cpu_power;
      return watts === undefined ? null : [threeDigits(watts), "W"];
    },
  },
];

// About a hundredth of the run; in powers of two, so that the line does not creep with every update.
function halfLife({ n }) {
  const total = n.reduce((sum, k) => sum + k, 0);
  return Math.max(1, 2 ** Math.floor(Math.log2(Math.max(1, total / 100))));
}

class Card {
  constructor(chart, view) {
    this.chart = chart;
    this.view = view;
    this.log = null; // null: not chosen by hand
    this.hidden = new Set();
    this.drawn = ""; // what the chart shows, to leave out redraws that would change nothing
    this.mounted = false;
    this.build();
  }

  build() {
    const { chart } = this;
    this.node = element("section", "iso-card", `chart-${chart.id}`);
    this.node.hidden = Boolean(chart.shown) && !chart.shown(this.view, []);
    const top = element("div", "iso-top");
    [this.title, this.how] = explained(chart.title, chart.id);
    this.now = element("div", "iso-now", `value-${chart.id}`);
    this.number = document.createElement("span");
    this.unit = document.createElement("small");
    this.now.append(this.number, this.unit);
    top.append(this.title, this.now);
    const sub = element("div", "iso-sub");
    this.note = element("div", "iso-note");
    this.legend = element("div", "iso-legend");
    this.entries = chart.traces.length > 1 ? chart.traces.map((trace) => this.entry(trace)) : [];
    this.legend.append(...this.entries);
    this.flaw = element("span", "iso-flaw", `flaw-${chart.id}`);
    sub.append(this.note, this.flaw, this.legend);
    if (chart.logFrom) sub.append(this.scaleButton());
    this.sub = sub;
    this.plot = element("div", "iso-plot", `plot-${chart.id}`);
    this.plot.dataset.empty = "";
    this.words = element("div", "iso-words", `words-${chart.id}`);
    for (const part of [this.words, this.legend, this.note, this.flaw]) part.hidden = true;
    this.node.append(top, sub, this.how, this.plot, this.words);
  }

  entry(trace) {
    const button = element("button", "iso-entry", `legend-${trace.key}`);
    button.type = "button";
    button.title = "Show or hide";
    button.textContent = trace.name;
    button.setAttribute("aria-pressed", "true");
    button.onclick = () => {
      const shown = this.hidden.delete(trace.key);
      if (!shown) this.hidden.add(trace.key);
      button.setAttribute("aria-pressed", String(shown));
      this.view.paint();
    };
    return button;
  }

  scaleButton() {
    this.scale = element("button", "iso-scale", `scale-${this.chart.id}`);
    this.scale.type = "button";
    this.scale.textContent = "log";
    this.scale.title = "Logarithmic scale";
    this.scale.hidden = true;
    this.scale.setAttribute("aria-pressed", "false");
    this.scale.onclick = () => {
      this.log = this.scale.getAttribute("aria-pressed") !== "true";
      this.view.paint();
    };
    return this.scale;
  }

  // The series of this card that have points, scaled to the unit shown.
  series() {
    const { traces } = this.view;
    const found = [];
    for (const trace of this.chart.traces) {
      const source = trace.smooth ? traces[trace.smooth] && smooth(traces[trace.smooth], halfLife(traces[trace.smooth])) : traces[trace.key];
      if (source?.x.length) found.push({ trace, x: source.x, y: source.y, step: source.step, factor: trace.factor ?? 1 });
    }
    if (this.chart.bytes) {
      const most = extremes(found, [-Infinity, Infinity]).high;
      const [factor, unit] = most >= 2 ** 30 ? [2 ** -30, "GiB"] : [2 ** -20, "MiB"];
      this.byteUnit = unit;
      for (const s of found) s.factor = factor;
    }
    for (const s of found) {
      if (s.factor !== 1) s.y = s.y.map((v) => (v === null ? null : v * s.factor));
    }
    return found;
  }

  // Draws what is new; `range` is the shared time axis.
  async update(Plotly, range) {
    const all = this.series();
    this.describe(all);
    const marks = this.chart.traces.flatMap(({ key }) => this.view.traces[key]?.marks ?? []);
    if (!all.length) return;
    const shown = all.filter((s) => !this.hidden.has(s.trace.key));
    const seen = extremes(shown, range);
    const { logFrom } = this.chart;
    const log = Boolean(logFrom && (this.log ?? (seen.positive < Infinity && seen.high / seen.positive > logFrom)));
    const aim = this.aim();
    if (aim) include(seen, aim.y);
    this.scale?.setAttribute("aria-pressed", String(log));
    const last = all.map((s) => `${s.trace.key}:${s.x.length}:${s.x.at(-1)}`).join();
    const state = [this.view.epoch, last, range, log, [...this.hidden], marks.length, aim?.words, this.view.look.signature].join("|");
    if (state === this.drawn && this.mounted) return;
    this.drawn = state;
    const lines = shown.map((s) => this.line(s));
    if (aim?.reached) lines.push(this.point(aim));
    await draw(Plotly, this, [lines, this.layout(range, yRange(this.chart, seen, log), log, marks, aim)]);
  }

  // What the run aims at on this card, in the card's unit, with where it was reached.
  aim() {
    const { about, answer } = this.view;
    if (!about.target || about.target.metric !== this.chart.target) return null;
    const { value } = about.target;
    const { reached } = answer;
    const upwards = about.target.metric === "test_accuracy";
    const factor = upwards ? 100 : 1;
    const name = upwards ? `${+(100 * value).toPrecision(6)} %` : `loss ${value}`;
    const words = reached ? `${name} reached at step ${whole(reached.step)}, ${duration(reached.train_s)}` : `target ${name}`;
    return { y: factor * value, reached: reached && { x: reached.elapsed_s, y: factor * reached.value }, upwards, words };
  }

  point({ reached, upwards }) {
    const { look } = this.view;
    const color = look.series[(upwards ? 0 : 1) % look.series.length];
    const marker = { color, size: 9, line: { color: look.background, width: 2 } };
    return { type: "scatter", x: [reached.x], y: [reached.y], mode: "markers", marker, hoverinfo: "skip", cliponaxis: false };
  }

  line({ trace, x, y, step }) {
    const { look } = this.view;
    const color = look.series[trace.color % look.series.length];
    const unit = this.chart.bytes ? ` ${this.byteUnit}` : (this.chart.unit ?? "");
    return {
      type: "scatter",
      x,
      y,
      customdata: step,
      name: trace.name,
      mode: x.length === 1 || (trace.sparse && x.length <= 80) ? "lines+markers" : "lines", // one point alone draws no line
      line: { color, width: trace.raw ? 1 : 1.8 },
      marker: { color, size: 4 },
      opacity: trace.raw ? 0.38 : 1,
      connectgaps: false,
      hovertemplate: `${trace.name} %{y:${this.chart.hover}}${unit}${step ? " · step %{customdata:,}" : ""}<extra></extra>`,
    };
  }

  layout(range, rangeY, log, marks, aim) {
    const { look } = this.view;
    const axis = { showline: false, ticks: "", color: look.faint };
    const extras = [divergence(marks, range, look), ...(aim ? [goal(aim, log, look)] : [])];
    return {
      autosize: true,
      margin: { l: 44, r: 12, t: 8, b: 28 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: look.background, // the line under the pointer has an edge in its contrast: on none at all, white in the dark
      font: { family: look.font, size: 11, color: look.faint },
      showlegend: false,
      dragmode: look.touch ? false : "zoom", // a finger scrolls the page
      hovermode: "x unified",
      hoverlabel: { bgcolor: look.background, bordercolor: look.border, font: { family: look.font, size: 11.5, color: look.text } },
      xaxis: { ...axis, range, showgrid: false, zeroline: false, ticklabelstandoff: 5, tickmode: "array", ...timeTicks(range), spikethickness: 1, spikecolor: look.faint, spikedash: "solid", hoverformat: ".2f", unifiedhovertitle: { text: "%{x:.2f} s" } },
      yaxis: {
        ...axis,
        type: log ? "log" : "linear",
        range: rangeY,
        fixedrange: true,
        automargin: log || Boolean(this.chart.wide), // 0.00002 needs more room than 44 px
        gridcolor: look.grid,
        zerolinecolor: look.grid,
        zerolinewidth: 1,
        ticklabelstandoff: 3,
        nticks: 5,
        tickformat: log ? "~g" : this.chart.tick,
        ...(log && { dtick: rangeY[1] - rangeY[0] > 1.5 ? Math.ceil((rangeY[1] - rangeY[0]) / 5) : "D2" }),
      },
      shapes: extras.flatMap((extra) => extra.shapes),
      annotations: extras.flatMap((extra) => extra.annotations),
    };
  }

  // The words of the card: current value, note or legend, and why there is nothing to draw.
  describe(all) {
    const { about, answer, missing } = this.view;
    const { title, textTitle, shown } = this.chart;
    setText(this.title, (about.text && textTitle) || title);
    explain(this.title, this.how, about.how?.[this.chart.id] ?? []);
    const flaw = this.chart.flaw?.(answer);
    this.flaw.hidden = !flaw;
    if (flaw) [this.flaw.textContent, this.flaw.title] = flaw;
    this.node.setAttribute("aria-label", this.title.textContent);
    this.node.hidden = Boolean(shown) && !shown(this.view, all);
    const last = Object.fromEntries(all.map((s) => [s.trace.key, s.y.findLast((v) => v !== null)]));
    const value = this.chart.bytes
      ? last.process_memory === undefined ? null : [threeDigits(last.process_memory), this.byteUnit]
      : this.chart.value(answer, last);
    setText(this.number, value ? String(value[0]) : "");
    setText(this.unit, value ? value[1] : "");
    this.now.toggleAttribute("data-bad", value?.[0] === "NaN");
    const present = new Set(all.map((s) => s.trace.key));
    const several = this.entries.length > 0 && all.length > 1;
    this.legend.hidden = !several;
    this.entries.forEach((entry, i) => (entry.hidden = !present.has(this.chart.traces[i].key)));
    this.note.hidden = several;
    setText(this.note, all.length ? (this.chart.note ?? "") : "");
    const { reading } = this.chart;
    const why = missing[typeof reading === "function" ? reading(about) : reading];
    const words = all.length ? "" : (why ?? (answer.over ? "Nothing was recorded." : ""));
    setText(this.words, words && words[0].toUpperCase() + words.slice(1));
    this.words.hidden = !words;
    this.plot.hidden = Boolean(words);
    if (this.scale) this.scale.hidden = !all.length;
  }

  restyle() {
    this.entries.forEach((entry, i) => {
      const { color, raw } = this.chart.traces[i];
      const { series } = this.view.look;
      const swatch = series[color % series.length];
      entry.style.setProperty("--swatch", raw ? `color-mix(in srgb, ${swatch} 40%, transparent)` : swatch);
    });
  }
}

// A loss that is no number any more has no height: a red line marks its moment, with words at the top.
function divergence(marks, range, look) {
  const inside = marks.filter(([x]) => x >= range[0] && x <= range[1]);
  const middle = (range[0] + range[1]) / 2;
  return {
    shapes: inside.map(([x]) => ({
      type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: look.bad, width: 1, dash: "dot" },
    })),
    annotations: inside.slice(0, 1).map(([x, step, kind]) => ({
      x, yref: "paper", y: 1, yanchor: "top", xanchor: x > middle ? "right" : "left", xshift: x > middle ? -3 : 3, showarrow: false,
      text: `<b>✕</b> ${kind} at step ${whole(step)}`, font: { color: look.bad, size: 12, family: look.font },
      bgcolor: look.background, borderpad: 2,
    })),
  };
}

// The target as a dashed line with its words at the left, where no curve is yet; once reached, in the corner that stays
// empty: accuracy rises away from the lower right one, loss falls away from the upper one.
function goal({ y, reached, upwards, words }, log, look) {
  const corner = { x: 1, xanchor: "right", yref: "paper", y: upwards ? 0 : 1, yanchor: upwards ? "bottom" : "top" };
  const beside = { x: 0, xanchor: "left", y: log ? Math.log10(y) : y, yanchor: upwards ? "bottom" : "top" };
  return {
    shapes: [{
      type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line: { color: look.faint, width: 1, dash: "dash" }, layer: "below",
    }],
    annotations: [{
      ...(reached ? corner : beside), xref: "paper", showarrow: false, borderpad: 2, text: words,
      font: { color: reached ? look.text : look.faint, size: 11, family: look.font },
    }],
  };
}

// --- the view ---------------------------------------------------------------------------------------------------

class View extends PollingView {
  constructor(parent, data) {
    super();
    this.runId = data.run_id;
    this.plotlyVersion = data.plotly_version;
    this.parent = parent;
    this.traces = {};
    this.missing = {};
    this.about = {};
    this.cursor = "";
    this.answer = null;
    this.receivedAt = 0;
    this.sawAlive = data.alive; // the page may have been drawn just before a short run ended
    this.epoch = 0; // counts full loads: the same number of points may then be other points
    this.build();
  }

  build() {
    this.node = element("div", "iso-live", "live-run");
    this.node.style.visibility = "hidden"; // until the stylesheet is there
    this.node.isoflop = this.debug;
    const head = element("div", "iso-head");
    this.badge = element("span", "iso-badge", "live-status");
    this.badge.setAttribute("role", "status");
    this.progress = element("div", "iso-progress", "live-progress");
    this.progress.setAttribute("role", "progressbar");
    this.progress.setAttribute("aria-label", "Progress");
    this.progress.setAttribute("aria-valuemin", "0");
    this.progress.setAttribute("aria-valuemax", "100");
    this.bar = document.createElement("div");
    this.progress.append(this.bar);
    this.left = element("span", "iso-left", "live-left");
    this.left.title = "What is left is estimated: by rule of three, from the share of the budget that is used.";
    this.facts = element("span", "iso-facts", "live-facts");
    this.resetButton = element("button", "iso-reset", "live-reset-zoom");
    this.resetButton.type = "button";
    this.resetButton.textContent = "Show all";
    this.resetButton.onclick = () => this.zoomTo(null);
    head.append(this.badge, this.progress, this.left, this.facts, this.resetButton);
    this.notice = element("p", "iso-notice", "live-notice");
    this.notice.setAttribute("role", "alert");
    this.alerts = element("ul", "iso-alerts", "live-alerts");
    this.alerts.setAttribute("role", "status");
    this.cards = CHARTS.map((chart) => new Card(chart, this));
    this.area = element("div", "iso-grid", "live-grid");
    this.area.append(...this.cards.map((card) => card.node)); // all cells stand before a chart measures its own
    this.node.append(head, this.notice, this.alerts, this.area);
    for (const part of [this.progress, this.left, this.resetButton, this.notice, this.alerts]) part.hidden = true;
    this.parent.append(this.node);
  }

  start() {
    this.look = readLook(this.node);
    this.begin(["live.css"], 250);
    this.poll();
  }

  charts() {
    return this.cards;
  }

  // --- data

  asks() {
    return !this.over;
  }

  async news() {
    const { found, answer } = await this.fetch(`api/runs/${encodeURIComponent(this.runId)}/points`, { after: this.cursor });
    if (found) this.take(answer);
    else this.gone = this.over = answer.error;
  }

  settled() {
    this.notice.hidden = !this.gone;
    if (this.gone) this.say(this.gone);
  }

  rest() {
    return this.answer?.steps || this.answer?.preparing ? ALIVE_MS : EAGER_MS;
  }

  take(answer) {
    if (answer.reset) {
      this.traces = {};
      this.missing = {};
      this.epoch += 1;
      this.debug.loads += 1;
    }
    if (answer.about) this.about = answer.about;
    for (const name of ["loss", "grad_norm"]) {
      const every = answer.traces[name]; // where no means came, every row did
      if (every) answer.traces[`${name}_mean`] ??= { x: every.x, y: every.y, n: every.x.map(() => 1) };
    }
    for (const [name, added] of Object.entries(answer.traces)) {
      const held = (this.traces[name] ??= { x: [], y: [] });
      for (const [column, values] of Object.entries(added)) (held[column] ??= []).push(...values);
    }
    if (answer.missing) this.missing = answer.missing;
    this.answer = answer;
    this.receivedAt = performance.now();
    this.cursor = Object.values(this.traces).some((t) => t.x.length > MOST_POINTS) ? "" : answer.cursor;
    this.over = answer.over;
    this.sawAlive ||= !answer.over;
  }

  // --- picture

  async paint() {
    if (!this.answer || this.ended) return;
    this.showHead();
    const Plotly = await loadPlotly(this.plotlyVersion);
    if (this.ended || this.dragging) return;
    const last = this.lastTime();
    const range = this.zoom ?? [0, this.over && last > 0 ? last * 1.01 : roundUp(last)];
    for (const card of this.cards) {
      await card.update(Plotly, range);
      if (this.ended) return;
    }
    this.debug.updates += 1;
    if (!document.hidden) await new Promise(requestAnimationFrame);
    if (this.over && this.sawAlive && !this.ended) {
      this.sawAlive = false; // said once
      this.onEnd(this.answer.status);
    }
  }

  lastTime() {
    return Math.max(0, ...Object.values(this.traces).map((t) => t.x.at(-1) ?? 0));
  }

  zoomTo(range) {
    this.zoom = range && [Math.max(0, range[0]), range[1]];
    this.resetButton.hidden = !range;
    this.paint();
  }

  resize() {
    for (const { mounted, plot } of this.cards) if (mounted && !plot.hidden) window.Plotly.Plots.resize(plot);
  }

  showHead() {
    const { status, over, preparing, elapsed_s: elapsed, left_s: left } = this.answer;
    const progress = preparing ? (preparing.total ? preparing.done / preparing.total : null) : this.answer.progress;
    this.badge.dataset.status = status;
    setText(this.badge, status[0].toUpperCase() + status.slice(1));
    this.progress.hidden = progress === null || (over && status === "finished");
    this.progress.toggleAttribute("data-over", over);
    this.bar.style.width = `${100 * (progress ?? 0)}%`;
    this.progress.setAttribute("aria-valuenow", String(Math.round(100 * (progress ?? 0))));
    const words = preparing ? preparingText(preparing, elapsed) : over ? (elapsed ? `after ${duration(elapsed)}` : "") : left === null ? "" : `about ${left < 59.5 ? `${Math.max(1, Math.round(left))} s` : duration(left)} left`;
    setText(this.left, words);
    this.left.hidden = !words;
    this.showAlerts(this.answer.alerts ?? []);
    this.showFacts();
  }

  // One line each: what is wrong and what to do.
  showAlerts(alerts) {
    const said = alerts.join("\n");
    if (said === this.said) return;
    this.said = said;
    this.alerts.hidden = !alerts.length;
    this.alerts.replaceChildren(...alerts.map((text) => {
      const line = document.createElement("li");
      line.textContent = text;
      return line;
    }));
  }

  showFacts() {
    if (!this.answer) return;
    const { steps, epochs, age_s: age, over, train_seconds: seconds, compiled_s: compiled } = this.answer;
    const facts = [];
    if (steps) facts.push(`step ${whole(steps)}`, `epoch ${epochs < 100 ? epochs.toFixed(1) : whole(epochs)}`);
    if (over && steps) facts.push(`${duration(seconds)} of training`);
    if (compiled !== undefined) facts.push(`compiled in ${duration(compiled)}`);
    if (!over && age !== null) facts.push(`last update ${duration(age + (performance.now() - this.receivedAt) / 1000)} ago`);
    setText(this.facts, facts.join(" · "));
  }

  // --- theme

  restyle() {
    this.look = readLook(this.node);
    for (const card of this.cards) card.restyle();
    this.paint().catch(() => {}); // without Plotly yet; the poll says so
  }
}
