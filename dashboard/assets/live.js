// The live view of one run: its state and a grid of charts. It polls the server for new points.
// The page sends the list of charts with their names, units and axes (engine/charts/facts.py).

const VERSION = new URL(import.meta.url).searchParams.get("v") ?? "";
const load = (name) => import(new URL(`${name}?v=${VERSION}`, import.meta.url).href); // a static import would lose the version
const {
  PollingView, capital, count, displayUnit, duration, element, extremes, include, keep, loadPlotly, loadStylesheet, lossText,
  refill, remainingText, roundUp, setText, smooth, tableRow, textButton, threeDigits, timeTicks, whole, withText, yRange,
} = await load("common.js");
const { Card } = await load("card.js");
const ALIVE_MS = 500;
const EAGER_MS = 150; // until the first point, because a user has just pressed Run
const MOST_POINTS = 2000; // per trace; instead of more, the whole run is fetched again, thinned
const MOST_RANK_LINES = 8; // as in dashboard/api/ranks.py

// --- called by Streamlit ---------------------------------------------------------------------------------------

export function mount({ data, parentElement, setTriggerValue }) {
  const fits = (view) => view.runId === data.run_id;
  return keep(parentElement, fits, () => new View(parentElement, data), (view) => {
    view.onEnd = (status) => setTriggerValue("ended", status);
    view.restyle();
  });
}

// For a page from which a run may be started: fetches what its charts need and draws one out of sight, so that the first
// points after a click do not wait until 5 MB of script are loaded and compiled.
export async function preload({ data }) {
  await Promise.all([loadStylesheet("live.css"), loadPlotly(data.plotly_version)]);
  await new Promise((resolve) => (window.requestIdleCallback ?? setTimeout)(resolve));
  const plot = document.createElement("div");
  const line = { x: [0, 1], y: [0, 1], mode: "lines" };
  await window.Plotly.newPlot(plot, [line], { width: 300, height: 200 }, { displayModeBar: false });
  window.Plotly.purge(plot);
}

// --- the charts -------------------------------------------------------------------------------------------------

// The value in a card's header.
const FORMATS = {
  loss: lossText,
  accuracy: (v) => (v < 100 ? Math.min(v, 99.99) : v).toFixed(2), // never rounded up to 100: one mistake is a mistake
  count,
  whole,
  three_digits: threeDigits,
  precise: (v) => String(+v.toPrecision(3)),
  bytes: threeDigits,
};

// When a card is shown; `all` are its lines that have points.
const SHOWN = {
  always: () => true,
  running: ({ answer }, all) => all.length > 0 || !answer?.over,
  recorded: (_, all) => all.length > 0,
  on_gpu: ({ about }, all) => Boolean(about.gpu) || all.length > 0,
  on_cpu: ({ about }, all) => about.gpu === false || all.length > 0,
  lr_moves: ({ about }) => Boolean(about.lr_moves),
};

// The lines of a chart as they are drawn: one for each rank, and a noisy one twice, faint and smoothed.
function linesOf({ lines }, ranks) {
  const ofRank = (line, i) => ({ ...line, key: `rank${i}_${line.key}`, name: `rank ${i} ${line.name ?? ""}`.trim(), color: i });
  const all = lines.flatMap((line) =>
    line.per_rank ? Array.from({ length: Math.min(ranks, MOST_RANK_LINES) }, (_, i) => ofRank(line, i)) : [line]);
  return all.flatMap((line) =>
    line.is_noisy ? [line, { ...line, key: `${line.key}_smooth`, name: "smoothed", smooth: `${line.key}_mean`, is_noisy: false }] : [line]);
}

const UNSMOOTHED = 0.01; // a half-life, in steps

// About a hundredth of the run; in powers of two, so that the line does not change its shape with every update.
function halfLife({ n }) {
  const total = n.reduce((sum, k) => sum + k, 0);
  return Math.max(1, 2 ** Math.floor(Math.log2(Math.max(1, total / 100))));
}

class RunCard extends Card {
  constructor(view, chart, ranks = 0) {
    super(view, chart, { id: chart.key });
    this.log = null; // null: not chosen by the reader
    this.lines = linesOf(chart, ranks);
    this.addValue(chart.key);
    if (this.lines.length > 1) for (const { key, name } of this.lines) this.addEntry(key, name);
    this.flaw = element("span", "iso-flaw", `flaw-${chart.key}`);
    this.note.after(this.flaw);
    if (chart.log_from) this.sub.append(this.scaleButton());
    for (const part of [this.legend, this.note, this.flaw]) part.hidden = true;
    this.node.hidden = !SHOWN[chart.shown](view, []);
  }

  scaleButton() {
    this.scale = textButton("iso-scale", "log", `scale-${this.chart.key}`, () => {
      this.log = this.scale.getAttribute("aria-pressed") !== "true";
      this.view.paint();
    }, { title: "Logarithmic scale", hidden: "", "aria-pressed": "false" });
    return this.scale;
  }

  // The lines of this card that have points, scaled to the unit shown.
  series() {
    const { traces } = this.view;
    const found = [];
    for (const line of this.lines) {
      const source = line.smooth ? traces[line.smooth] && smooth(traces[line.smooth], this.view.about.few_rows ? UNSMOOTHED : halfLife(traces[line.smooth])) : traces[line.key];
      if (source?.x.length) found.push({ line, x: source.x, y: source.y, step: source.step });
    }
    const { unit = "", factor } = this.chart;
    const [times, shownUnit] = unit === "bytes" ? displayUnit(unit, extremes(found, [-Infinity, Infinity]).high) : [factor, unit];
    this.shownUnit = shownUnit;
    if (times !== 1) for (const one of found) one.y = one.y.map((v) => (v === null ? null : v * times));
    return found;
  }

  // Draws what is new; `range` is the time axis that all cards share.
  async update(Plotly, range) {
    const all = this.series();
    this.describe(all);
    if (!all.length) return;
    const marks = this.lines.flatMap(({ key }) => this.view.traces[key]?.marks ?? []);
    const shown = all.filter(({ line }) => !this.hidden.has(line.key));
    const seen = extremes(shown, range);
    const log = this.isLog(seen, this.log);
    const target = this.target();
    if (target) include(seen, target.y);
    this.scale?.setAttribute("aria-pressed", String(log));
    const last = all.map(({ line, x }) => `${line.key}:${x.length}:${x.at(-1)}`).join();
    const state = [this.view.epoch, last, range, log, [...this.hidden], marks.length, target?.words].join("|");
    await this.draw(Plotly, state, () => {
      const traces = shown.map((one) => this.trace(one));
      if (target?.reached) traces.push(this.reachedPoint(target));
      return [traces, this.layout(range, yRange(this.chart, seen, log), log, marks, target)];
    });
  }

  // The run's target where it belongs on this card, in the card's unit, and where it was reached.
  target() {
    const { about, answer } = this.view;
    if (!about.target || about.target.metric !== this.chart.target) return null;
    const { value } = about.target;
    const { reached } = answer;
    const { factor } = this.chart;
    const upwards = about.target.metric === "test_accuracy";
    const name = upwards ? `${+(factor * value).toPrecision(6)} %` : `loss ${value}`;
    const words = reached ? `${name} reached at step ${whole(reached.step)}, ${duration(reached.train_s)} (interpolated)` : `target ${name}`;
    return { y: factor * value, reached: reached && { x: reached.elapsed_s, y: factor * reached.value }, upwards, words };
  }

  reachedPoint({ reached, upwards }) {
    const color = this.color(upwards ? 0 : 1);
    const marker = { color, size: 9, line: { color: this.view.look.background, width: 2 } };
    return { type: "scatter", x: [reached.x], y: [reached.y], mode: "markers", marker, hoverinfo: "skip", cliponaxis: false };
  }

  trace({ line, x, y, step }) {
    const color = this.color(line.color);
    return {
      type: "scatter",
      x,
      y,
      customdata: step,
      name: line.name,
      mode: x.length === 1 || (line.is_sparse && x.length <= 80) ? "lines+markers" : "lines", // a single point draws no line
      line: { color, width: line.is_noisy ? 1 : 1.8 },
      marker: { color, size: 4 },
      opacity: line.is_noisy ? 0.38 : 1,
      connectgaps: false,
      hovertemplate: `${line.name} %{y:${this.chart.digits}} ${this.shownUnit}${step ? " · step %{customdata:,}" : ""}<extra></extra>`,
    };
  }

  layout(range, rangeY, log, marks, target) {
    const { look } = this.view;
    const extras = [divergence(marks, range, look), ...(target ? [targetLine(target, log, look)] : [])];
    return this.frame({
      xaxis: this.xAxis(range, this.view.about.over_steps
        ? { nticks: 6, tickformat: "~s", unifiedhovertitle: { text: "step %{x:,}" } } // an imported curve without times
        : { tickmode: "array", ...timeTicks(range), hoverformat: ".2f", unifiedhovertitle: { text: "%{x:.2f} s" } }),
      yaxis: this.yAxis(rangeY, log, { automargin: log || Boolean(this.chart.wide) }), // 0.00002 needs more room than 44 px
      shapes: extras.flatMap((extra) => extra.shapes),
      annotations: extras.flatMap((extra) => extra.annotations),
    });
  }

  // The texts of the card: title, value, note or legend, and the reason if there is nothing to draw.
  describe(all) {
    const { about, answer, missing } = this.view;
    const { title, text_title: textTitle, note, reading, flaw, shown } = this.chart;
    setText(this.title, (about.text && textTitle) || title);
    this.node.setAttribute("aria-label", this.title.textContent);
    this.node.hidden = !SHOWN[shown](this.view, all);
    this.flaw.hidden = !(flaw && answer.busy);
    if (!this.flaw.hidden) [this.flaw.textContent, this.flaw.title] = ["machine was busy", answer.busy];
    const value = this.value(all);
    this.showValue(value ?? "", value === null || value === "NaN" ? "" : this.shownUnit);
    this.now.toggleAttribute("data-bad", value === "NaN");
    const present = new Set(all.map(({ line }) => line.key));
    const several = this.entries.size > 0 && all.length > 1;
    this.legend.hidden = !several;
    for (const [key, button] of this.entries) button.hidden = !present.has(key);
    this.note.hidden = several;
    setText(this.note, all.length ? (note ?? "") : "");
    this.showWords(all.length ? "" : capital(missing[reading] ?? (answer.over ? "Nothing was recorded." : "")));
    if (this.scale) this.scale.hidden = !all.length;
  }

  // The value in the header as text, or null; of several ranks the highest.
  value(all) {
    const { current, format, factor, lines } = this.chart;
    if (current) {
      const { current: values, steps } = this.view.answer;
      if (values[current] !== null) return FORMATS[format](factor * values[current]);
      return format === "loss" && steps ? "NaN" : null;
    }
    const last = all.map(({ y }) => y.findLast((v) => v !== null)).filter((v) => v !== undefined);
    if (!last.length) return null;
    if (lines.some((line) => line.per_rank)) return FORMATS[format](Math.max(...last));
    const main = all.find(({ line }) => line.smooth) ?? all.find(({ line }) => line.key === lines[0].key);
    return main ? FORMATS[format](main.y.findLast((v) => v !== null) ?? 0) : null;
  }

  swatch(key) {
    const line = this.lines.find((one) => one.key === key);
    const color = this.color(line.color);
    return line.is_noisy ? `color-mix(in srgb, ${color} 40%, transparent)` : color;
  }
}

// NaN has no height, so a red line with a label marks when a loss became NaN or infinite.
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

// The target as a dashed line with its label at the left, where no curve is yet. Once it is reached, the label moves to the
// corner that stays empty: the lower right one of an accuracy that rises, the upper right one of a loss that falls.
function targetLine({ y, reached, upwards, words }, log, look) {
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

// --- the ranks ---------------------------------------------------------------------------------------------------

const RANK_COLUMNS = ["Rank", "Device", "Step", "Own work", "Waiting in all-reduce", "CPU", "Memory", ""];

// Each rank in the last measured window, and the rank that the others wait for.
class RankTable {
  constructor() {
    this.node = element("div", "iso-ranks", "live-ranks", { hidden: "" });
  }

  show({ rows, straggler, steps, method }) {
    const table = document.createElement("table");
    table.append(tableRow("th", RANK_COLUMNS));
    rows.forEach(({ device, step_s, own_s, waits, cpu, memory }, rank) => {
      const row = tableRow("td", [
        String(rank), device, milliseconds(step_s), milliseconds(own_s), percent(waits), percent(cpu), size(memory),
        rank === straggler ? "the other ranks wait for this one" : "",
      ]);
      row.toggleAttribute("data-slow", rank === straggler);
      table.append(row);
    });
    const text = `Means of steps ${whole(steps[0])} to ${whole(steps[1])}, measured`;
    this.node.replaceChildren(table, withText("div", "iso-note", text, "", { title: method }));
    this.node.hidden = false;
  }
}

const milliseconds = (seconds) => (seconds === null ? "–" : `${threeDigits(1000 * seconds)} ms`);
const percent = (share) => (share === null ? "–" : `${Math.round(100 * share)} %`);
function size(bytes) {
  if (bytes === null) return "–";
  const [factor, unit] = displayUnit("bytes", bytes);
  return `${threeDigits(bytes * factor)} ${unit}`;
}

// --- the view ---------------------------------------------------------------------------------------------------

class View extends PollingView {
  constructor(parent, data) {
    super(parent, data, { id: "live-run", prefix: "live-", className: "" });
    Object.assign(this, { runId: data.run_id, traces: {}, missing: {}, about: {} });
    this.epoch = 0; // counts full loads: the same number of points may then be other points
    this.rows = data.charts;
    this.build();
  }

  build() {
    const head = this.stateLine("Progress");
    this.left.title = "The time left is estimated from the share of the budget that is used.";
    head.append(this.resetZoom("Show all"));
    this.alerts = element("ul", "iso-alerts", "live-alerts", { role: "status", hidden: "" });
    this.cards = this.rows.filter((row) => !isOfRanks(row)).map((row) => new RunCard(this, row));
    this.area = element("div", "iso-grid", "live-grid");
    this.area.append(...this.cards.map((card) => card.node)); // all cells must stand before a chart measures its own
    this.ranks = new RankTable();
    this.node.append(head, this.notice, this.alerts, this.ranks.node, this.area);
  }

  start() {
    this.begin(["live.css"], 250);
    this.poll();
  }

  // --- data

  needsPoll() {
    return !this.over;
  }

  async fetchUpdate() {
    const after = (cursor) => this.fetch(`api/runs/${encodeURIComponent(this.runId)}/points`, { after: cursor });
    let { found, answer } = await after(this.cursor);
    if (found && this.overfills(answer)) ({ found, answer } = await after(""));
    if (found) this.take(answer);
    else this.gone = this.over = answer.error;
  }

  pollDelay() {
    return this.answer?.steps || this.answer?.preparing ? ALIVE_MS : EAGER_MS;
  }

  overfills({ reset, traces }) {
    return !reset && Object.entries(traces).some(([name, { x }]) => (this.traces[name]?.x.length ?? 0) + x.length > MOST_POINTS);
  }

  take(answer) {
    if (answer.reset) {
      this.traces = {};
      this.missing = {};
      this.epoch += 1;
      this.debug.loads += 1;
    }
    if (answer.about) this.about = answer.about;
    if (answer.ranks) this.addRanks(answer.ranks);
    for (const { key } of this.rows.flatMap((row) => row.lines).filter((line) => line.is_noisy)) {
      const every = answer.traces[key]; // without means every row was sent
      if (every) answer.traces[`${key}_mean`] ??= { x: every.x, y: every.y, n: every.x.map(() => 1) };
    }
    for (const [name, added] of Object.entries(answer.traces)) {
      const held = (this.traces[name] ??= { x: [], y: [] });
      for (const [column, values] of Object.entries(added)) (held[column] ??= []).push(...values);
    }
    if (answer.missing) this.missing = answer.missing;
    this.answer = answer;
    this.receivedAt = performance.now();
    this.cursor = answer.cursor;
    this.over = answer.over;
    this.wasAlive ||= !answer.over; // the page may have been drawn just before a short run ended
  }

  // The first answer about several ranks adds their charts after those of the run.
  addRanks(ranks) {
    this.ranks.show(ranks);
    if (this.hasRanks) return;
    this.hasRanks = true;
    const cards = this.rows.filter(isOfRanks).map((row) => new RunCard(this, row, ranks.rows.length));
    this.cards.push(...cards);
    this.area.append(...cards.map((card) => card.node));
    for (const card of cards) card.restyle();
  }

  // --- picture

  showWords() {
    const { status, over, preparing } = this.answer;
    const share = preparing ? (preparing.total ? preparing.done / preparing.total : null) : this.answer.progress;
    this.showState(status, over && status === "finished" ? null : share, remainingText({ ...this.answer, doing: "" }));
    this.progress.toggleAttribute("data-over", over);
    this.showAlerts(this.answer.alerts ?? []);
    return true;
  }

  range() {
    const last = Math.max(0, ...Object.values(this.traces).map((t) => t.x.at(-1) ?? 0));
    return this.zoom ?? [0, this.over && last > 0 ? last * 1.01 : roundUp(last)];
  }

  zoomTo(range) {
    super.zoomTo(range && [Math.max(0, range[0]), range[1]]);
  }

  // One line for each alert: the problem and what to do.
  showAlerts(alerts) {
    this.alerts.hidden = !alerts.length;
    refill(this.alerts, alerts, () => alerts.map((text) => withText("li", "", text)));
  }

  showFacts() {
    if (!this.answer) return;
    const { steps, epochs, age_s: age, over, train_seconds: seconds, compiled_s: compiled } = this.answer;
    const facts = [];
    if (steps) facts.push(`step ${whole(steps)}`);
    if (epochs) facts.push(`epoch ${epochs < 100 ? epochs.toFixed(1) : whole(epochs)}`); // unknown for an imported curve without samples
    if (over && steps && seconds) facts.push(`${duration(seconds)} of training`);
    if (compiled !== undefined) facts.push(`compiled in ${duration(compiled)}`);
    if (!over && age !== null) facts.push(this.lastUpdate(age));
    setText(this.facts, facts.join(" · "));
  }
}

const isOfRanks = ({ lines }) => lines.some((line) => line.per_rank);
