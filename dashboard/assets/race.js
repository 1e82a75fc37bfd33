// The live view of a race: a row for each lane and a few charts that all lanes share, fed by one poll for all runs.
//
// Axis, scale, zoom, smoothing and the target are state of this view and survive every update, and so do the points when seeds
// or lanes are added. Which charts there are, their names and units come from the page (engine/chart_facts.py).

const VERSION = new URL(import.meta.url).searchParams.get("v") ?? "";
const load = (name) => import(new URL(`${name}?v=${VERSION}`, import.meta.url).href);
const {
  PollingView, capital, count, decades, duration, element, extremes, fade, include, keep, literal, lossText, preparingText, progressBar,
  setText, showProgress, textButton, timeTicks, whole, withText, yRange,
} = await load("common.js");
const { Card } = await load("card.js");
const { AXES, Run, joined, laneState, mean, meanOf, median, niceEnd, noiseFloor, outline, tail } = await load("lanes.js");

const ALIVE_MS = 500;
const EAGER_MS = 150; // until the first point: someone has just pressed Run
const LONGEST_NAME = 40;
const MARGIN = { l: 52, r: 16, t: 10, b: 44 }; // fixed, because the target line lies over the chart at a place computed here

const TEXTS = { loss: lossText, accuracy: (v) => `${+v.toFixed(2)} %` }; // of a target, by the chart's format

const cut = (text) => (text.length > LONGEST_NAME ? `${text.slice(0, LONGEST_NAME - 1)}…` : text);

// --- what Streamlit calls ---------------------------------------------------------------------------------------

export function mount({ data, parentElement, setStateValue, setTriggerValue }) {
  const fits = (view) => view.key === data.key;
  return keep(parentElement, fits, () => new View(parentElement, data), (view) => {
    view.onEnd = (ended) => setTriggerValue("ended", ended);
    view.onTarget = (target) => setStateValue("target", target);
    view.update(data);
  });
}

// --- the rows -----------------------------------------------------------------------------------------------------

const COLUMNS = ["Loss", "Accuracy", "Steps", "Samples/s", "Target"];

// One lane: its name, its state and its current values; where it has several seeds, their mean.
class Row {
  constructor(view, place) {
    this.view = view;
    this.node = element("div", "race-row", `lane-${place}`, { role: "row" });
    const first = element("div", "race-lane", "", { role: "rowheader" });
    this.name = textButton("race-name", "", `lane-name-${place}`, () => view.toggleLane(place), { title: "Show or hide" });
    this.label = element("span", "race-label");
    this.name.append(element("span", "race-swatch", `swatch-${place}`), this.label);
    this.baseline = withText("span", "race-tag", "baseline");
    first.append(this.name, this.baseline);
    this.badge = element("span", "iso-badge", `lane-status-${place}`);
    this.progress = progressBar("Progress");
    const state = element("div", "race-state", "", { role: "cell" });
    state.append(this.badge, this.progress);
    this.values = COLUMNS.map((column) => {
      const testid = `lane-${column.toLowerCase().replace("/", "-per-")}-${place}`;
      const cell = element("div", "race-value", testid, { role: "cell", "data-label": column });
      cell.append(element("span"));
      return cell;
    });
    this.busy = element("span", "iso-flaw", `lane-busy-${place}`, { hidden: "" });
    this.values[COLUMNS.indexOf("Samples/s")].prepend(this.busy); // the numbers stay below each other
    this.why = element("div", "race-why", `lane-why-${place}`);
    this.node.append(first, state, ...this.values, this.why);
  }

  show(lane, hidden) {
    const { view } = this;
    COLUMNS.forEach((column, i) => (this.values[i].title = view.how[column] ?? ""));
    const { runs } = lane;
    this.node.style.setProperty("--swatch", view.color(lane));
    setText(this.label, lane.label);
    this.label.title = lane.label;
    this.baseline.hidden = !lane.baseline;
    this.name.setAttribute("aria-pressed", String(!hidden));
    const state = laneState(runs);
    this.badge.dataset.status = state.status;
    setText(this.badge, capital(state.text));
    showProgress(this.progress, mean(runs.map((run) => run.progress)) ?? 0);
    this.progress.setAttribute("aria-label", `Progress of ${lane.label}`);
    this.progress.hidden = runs.every((run) => run.over);
    this.texts(lane).forEach((text, i) => {
      setText(this.values[i].lastChild, text);
      this.values[i].toggleAttribute("data-bad", text === "NaN");
    });
    this.mark(runs);
    this.explain(runs);
  }

  // Another program used the machine: the lane's throughput is lower than it would be alone.
  mark(runs) {
    const found = runs.filter((run) => run.answer?.busy);
    this.busy.hidden = !found.length;
    setText(this.busy, `busy${runs.length > 1 ? ` ${found.length} of ${runs.length}` : ""}`);
    this.busy.title = `The machine was busy: ${[...new Set(found.map((run) => run.answer.busy))].slice(0, 3).join("; ")}`;
  }

  texts({ runs }) {
    const now = runs.map((run) => run.answer?.current).filter(Boolean);
    const of = (name) => now.map((current) => current[name]).filter((v) => v !== null);
    const losses = of("loss");
    const accuracies = of("accuracy");
    const speeds = (now.length && runs.some((run) => !run.over) ? runs.filter((run) => !run.over && run.answer?.current).map((run) => run.answer.current.samples_per_s) : of("samples_per_s")).filter((v) => v !== null && v !== undefined);
    const steps = of("steps");
    const [fewest, most] = [Math.min(...steps), Math.max(...steps)];
    const accuracy = mean(accuracies); // never rounded up to 100: one mistake is a mistake
    return [
      !now.length ? "–" : losses.length < now.length ? "NaN" : lossText(mean(losses)),
      accuracy === null ? "–" : `${(100 * (accuracy < 1 ? Math.min(accuracy, 0.9999) : accuracy)).toFixed(2)} %`,
      !steps.length ? "–" : fewest === most ? count(most) : `${count(fewest)}–${count(most)}`,
      speeds.length ? count(mean(speeds)) : "–",
      this.target(runs),
    ];
  }

  // Where the lane reached the target, on the axis that is shown: the median, where more than half of its seeds reached it.
  target(runs) {
    const { view } = this;
    if (!view.target) return "–";
    const found = runs.map((run) => run.crossing(view.target, view.axis, view)).filter(Boolean);
    if (!found.length) return runs.every((run) => run.over) ? "not reached" : "–";
    const all = [...found.map(({ x }) => x), ...Array(runs.length - found.length).fill(Infinity)];
    const middle = median(all);
    const text = Number.isFinite(middle) ? view.axisText(middle) : "";
    if (runs.length === 1) return text;
    return `${text}${text && " · "}${found.length} of ${runs.length} seeds`;
  }

  // Why seeds ended before their budget, or what they prepare before their first step.
  explain(runs) {
    const seeds = new Map(); // of each reason
    for (const run of runs) {
      const { preparing, why } = run.answer ?? {};
      const text = run.error || why || (preparing && (preparing.done === null ? `${preparing.text}…` : preparingText(preparing, 0)));
      if (text) seeds.set(text, [...(seeds.get(text) ?? []), run.seed]);
    }
    const shown = [...seeds].map(([text, of]) => (runs.length > 1 ? `Seed${of.length > 1 ? "s" : ""} ${of.join(", ")}: ${text}` : text));
    setText(this.why, shown.slice(0, 3).join("\n") + (shown.length > 3 ? `\nand ${shown.length - 3} more` : ""));
    this.why.hidden = !shown.length;
  }
}

// --- the charts -----------------------------------------------------------------------------------------------------

class RaceCard extends Card {
  constructor(view, chart) {
    super(view, chart, { id: chart.key, prefix: "race-" });
    this.metric = chart.target;
    this.isPercent = chart.unit === "%";
    this.legend.remove();
    this.floor = element("div", "race-floor", `floor-${chart.key}`, { hidden: "" });
    this.sub.append(this.floor);
    const frame = element("div", "race-frame");
    this.plot.replaceWith(frame);
    frame.append(this.plot);
    if (this.metric) {
      this.top.append(this.field());
      frame.append(this.goal());
    }
    this.node.hidden = chart.shown === "chosen";
  }

  // --- target: a number field, and a line that moves with the pointer and the keys

  field() {
    const label = element("label", "race-target");
    const { most, title } = this.chart;
    this.input = element("input", "race-number", `target-${this.metric}`, {
      type: "number", step: "any", min: most ? 0.01 : 1e-6, ...(most && { max: most }), placeholder: "none",
      "aria-label": `Target of ${title.toLowerCase()}${this.isPercent ? ", %" : ""}`,
    });
    this.input.oninput = () => (this.typing = true);
    this.input.onblur = () => (this.typing = false);
    this.input.onchange = () => {
      if (!this.input.reportValidity()) return; // what was typed stays until it is corrected or the field is left
      this.typing = false;
      const { view } = this;
      if (this.input.value !== "") view.aim({ metric: this.metric, value: Number(this.input.value) / this.chart.factor });
      else if (view.target?.metric === this.metric) view.aim(null);
    };
    label.append(withText("span", "", "Target"), this.input);
    if (this.isPercent) label.append(this.chart.unit);
    return label;
  }

  goal() {
    this.line = element("div", "race-goal", `goal-${this.metric}`, { hidden: "" });
    this.grip = element("div", "race-grip", `grip-${this.metric}`, {
      role: "slider", tabindex: 0, "aria-orientation": "vertical", "aria-label": `Target of ${this.chart.title.toLowerCase()}`,
      title: "Drag to set the target",
    });
    this.line.append(element("div", "race-dash"), this.grip);
    this.line.onpointerdown = (event) => this.grab(event);
    this.grip.onkeydown = (event) => this.press(event);
    return this.line;
  }

  grab(event) {
    if (event.button) return;
    event.preventDefault();
    this.grip.focus({ preventScroll: true });
    this.line.setPointerCapture(event.pointerId);
    const { view } = this;
    const begun = event.clientY;
    const from = this.heightOf(this.shownTarget());
    let value = null;
    view.dragging = true;
    this.line.dataset.dragged = "";
    this.line.onpointermove = (moved) => {
      value = this.valueAt(from - (moved.clientY - begun));
      this.place(value);
    };
    const done = (kept) => {
      this.line.onpointermove = this.line.onpointerup = this.line.onpointercancel = null;
      delete this.line.dataset.dragged;
      view.dragging = false;
      if (kept && value !== null) view.aim({ metric: this.metric, value: value / this.chart.factor });
      else view.paint();
    };
    this.line.onpointerup = () => done(true);
    this.line.onpointercancel = () => done(false);
  }

  press(event) {
    const by = { ArrowUp: 1, ArrowDown: -1, PageUp: 10, PageDown: -10 }[event.key];
    if (!by) return;
    event.preventDefault();
    const { view, chart } = this;
    const value = Math.max(this.grain(), Math.min(chart.most ?? Infinity, this.shownTarget() + by * this.grain()));
    view.aim({ metric: this.metric, value: +(value / this.chart.factor).toPrecision(8) }, 400); // the page hears of it when no key follows
  }

  // The target in this chart's unit. Where the target is one of the other chart, the middle of this one: its grip stands there.
  shownTarget() {
    const { target } = this.view;
    if (target?.metric === this.metric) return target.value * this.chart.factor;
    const [low, high] = this.rangeY;
    return this.unlog((low + high) / 2);
  }

  unlog(v) {
    return this.log ? 10 ** v : v;
  }

  // The step of one key press: about a two-hundredth of the axis, a round number.
  grain() {
    const [low, high] = this.rangeY.map((v) => this.unlog(v));
    return 10 ** Math.floor(Math.log10((high - low) / 100));
  }

  get inner() {
    return this.plot.clientHeight - MARGIN.t - MARGIN.b;
  }

  // px above the foot of the axis
  heightOf(value) {
    const [low, high] = this.rangeY;
    const v = this.log ? Math.log10(Math.max(value, 1e-12)) : value;
    return (this.inner * (v - low)) / (high - low);
  }

  valueAt(height) {
    const [low, high] = this.rangeY;
    const v = this.unlog(low + ((high - low) * Math.max(0, Math.min(this.inner, height))) / this.inner);
    const grain = this.log ? 10 ** (Math.floor(Math.log10(v)) - 2) : this.grain();
    const round = +(Math.round(v / grain) * grain).toPrecision(8);
    return Math.max(grain, Math.min(this.chart.most ?? Infinity, round)); // a target of 0 means no target
  }

  place(value) {
    const mine = this.line.dataset.dragged !== undefined || this.view.target?.metric === this.metric;
    this.line.toggleAttribute("data-idle", !mine);
    this.line.style.bottom = `${MARGIN.b + Math.max(0, Math.min(this.inner, this.heightOf(value)))}px`;
    const text = TEXTS[this.chart.format](value);
    setText(this.grip, mine ? text : "⇕");
    this.grip.setAttribute("aria-valuenow", String(+value.toPrecision(6)));
    this.grip.setAttribute("aria-valuetext", mine ? text : "none");
    if (!this.typing) this.input.value = mine ? String(+value.toPrecision(6)) : "";
  }

  // --- picture

  // What each visible lane draws here: a line for each of its seeds, and their mean where there are several.
  lanes() {
    const { view, chart } = this;
    const shown = [];
    view.lanes.forEach((lane, place) => {
      if (view.hidden.has(place)) return;
      const seeds = lane.runs.flatMap((run) => {
        const line = run.line(chart.key, view.axis, view, view.share, this.chart.factor);
        return line ? [{ run, ...line }] : [];
      });
      if (!seeds.length) return;
      const all = seeds.length > 1 && !view.allSeeds ? this.mean(lane, seeds) : null;
      shown.push({ lane, place, seeds, mean: all?.x.length ? all : null });
    });
    return shown;
  }

  mean(lane, seeds) {
    const name = [this.chart.key, this.view.axis.id, this.view.share, ...seeds.map(({ run }) => `${run.id}:${run.version}`)].join();
    lane.means ??= {};
    if (lane.means[this.chart.key]?.name !== name) lane.means[this.chart.key] = { name, made: meanOf(seeds) };
    return lane.means[this.chart.key].made;
  }

  async update(Plotly, range) {
    const { view, chart } = this;
    this.node.hidden = chart.shown === "chosen" && !view.extra;
    const lanes = this.lanes();
    setText(this.title, (view.isText() && chart.text_title) || chart.title);
    if (!lanes.length || this.node.hidden) {
      if (this.mounted && !lanes.length) this.plot.style.visibility = "hidden";
      if (this.line) this.line.hidden = true;
      return;
    }
    this.plot.style.visibility = "";
    const main = lanes.flatMap((l) => (l.mean ? [{ x: l.mean.x, y: l.mean.low }, { x: l.mean.x, y: l.mean.high }, ...this.tails(l)] : l.seeds));
    const seen = extremes(main, range);
    const log = this.isLog(seen, view.logY);
    if (chart.most === undefined) seen.high = Math.min(seen.high, this.ceiling(lanes, seen.low));
    const aimed = this.metric && view.target?.metric === this.metric ? view.target.value * this.chart.factor : null;
    if (aimed !== null) include(seen, aimed);
    this.log = log && seen.positive < Infinity;
    this.rangeY = yRange(chart, seen, this.log);
    const versions = view.lanes.flatMap((lane) => lane.runs.map((run) => `${run.id}:${run.version}`));
    const state = [view.settings(), range, this.rangeY, this.log, versions].join("|");
    await this.draw(Plotly, state, () => [this.traces(lanes, aimed), this.layout(range)]);
    if (this.line && !view.dragging) {
      this.line.hidden = false;
      this.place(this.shownTarget());
    }
  }

  // A lane that diverges leaves the picture at the top: with its 1e34 on the axis all others would be one flat line.
  ceiling(lanes, low) {
    const begun = lanes.flatMap(({ seeds }) => seeds.map(({ y }) => y.find((v) => v !== null) ?? 0));
    return Math.max(10 * Math.max(...begun), 2 * low);
  }

  traces(lanes, aimed) {
    const { view, chart } = this;
    const several = (lane) => lane.runs.length > 1;
    const bands = lanes.filter((l) => l.mean).map((l) => band(outline(l.mean), fade(view.color(l.lane), 0.14)));
    const raw = !chart.lines[0].is_noisy || view.share === 0 ? [] : lanes.filter((l) => l.seeds.length === 1).flatMap((l) => this.raw(l));
    const tails = lanes.filter((l) => l.mean && !view.allSeeds).flatMap((l) => {
      const rest = this.tails(l);
      return rest.length ? [faint(joined(rest), view.color(l.lane), 0.5, 1.2)] : [];
    });
    const lines = lanes.flatMap((l) =>
      l.mean
        ? [this.stroke(l.lane, l.mean, `${cut(l.lane.label)} · mean of ${l.seeds.length}`)]
        : l.seeds.map((seed) => this.stroke(l.lane, seed, several(l.lane) ? `${cut(l.lane.label)} · seed ${seed.run.seed}` : cut(l.lane.label), view.allSeeds && several(l.lane))),
    );
    const crossings = aimed === null ? [] : lanes.flatMap((l) => this.crossings(l, aimed));
    return [...this.noise(lanes), ...bands, ...raw, ...tails, ...lines, ...crossings, ...lanes.flatMap((l) => this.marks(l))];
  }

  raw({ lane, seeds }) {
    const line = seeds[0].run.raw(this.chart.key, this.view.axis, this.view, this.chart.factor);
    return line ? [faint(line, this.view.color(lane), 0.22, 1)] : [];
  }

  // The lines of the seeds that go on after the end of the mean of all.
  tails({ mean: middle, seeds }) {
    return seeds.map((seed) => tail(seed, middle.x.at(-1))).filter(Boolean);
  }

  stroke(lane, { x, y, step }, name, thin = false) {
    const { view, chart } = this;
    const color = view.color(lane);
    const few = this.metric && x.length <= 60;
    return {
      type: "scatter", x, y, customdata: step, name: literal(name),
      mode: x.length === 1 || few ? "lines+markers" : "lines",
      line: { color, width: thin ? 1.1 : 2 }, marker: { color, size: 4 }, opacity: thin ? 0.75 : 1, connectgaps: false,
      hovertemplate: `%{y:${chart.digits}}${this.isPercent ? " %" : ""}`,
      meta: { lane: view.lanes.indexOf(lane), main: true },
    };
  }

  crossings({ lane, seeds }, aimed) {
    const { view } = this;
    const found = seeds.flatMap(({ run }) => {
      const at = run.crossing(view.target, view.axis, view);
      return at ? [{ run, ...at }] : [];
    });
    if (!found.length) return [];
    return [{
      type: "scatter", mode: "markers", x: found.map(({ x }) => x), y: found.map(() => aimed), cliponaxis: false,
      marker: { symbol: "diamond", size: 10, color: view.color(lane), line: { color: view.look.background, width: 1.5 } },
      name: literal(cut(lane.label)), customdata: found.map(({ step }) => step),
      hovertemplate: "target crossed at step %{customdata:,}", meta: { lane: view.lanes.indexOf(lane), crossing: true },
    }];
  }

  marks({ lane, place }) {
    const { view } = this;
    const found = lane.runs.flatMap((run) => run.marks(this.chart.key, view.axis, view));
    if (!found.length) return [];
    const top = this.rangeY[1] - 0.03 * (this.rangeY[1] - this.rangeY[0]);
    return [{
      type: "scatter", mode: "markers", x: found.map(({ x }) => x), y: found.map(() => this.unlog(top)), cliponaxis: false,
      marker: { symbol: "x", size: 9, color: view.look.bad, line: { color: view.color(lane), width: 1.5 } },
      name: literal(cut(lane.label)), text: found.map(({ word, step }) => `${word} at step ${whole(step)}`),
      hovertemplate: "%{text}", meta: { lane: place, mark: true },
    }];
  }

  // How far chance alone moves an accuracy: a band around the leading lane.
  noise(lanes) {
    const { view } = this;
    const last = (line) => line.y.findLast((v) => v !== null) ?? -Infinity;
    const known = lanes.filter(({ seeds }) => seeds[0].run.about.test_examples && !seeds[0].run.about.accuracy_is_of_text);
    const best = this.metric === "test_accuracy" && known.map((l) => ({ ...l, line: l.mean ?? l.seeds[0] })).reduce((a, b) => (a && last(a.line) >= last(b.line) ? a : b), null);
    const end = best && last(best.line);
    this.floor.hidden = !best || end === -Infinity;
    if (this.floor.hidden) return [];
    const n = best.seeds[0].run.about.test_examples;
    const half = 100 * noiseFloor(end / 100, n);
    setText(this.floor, `noise floor ±${half.toFixed(2)} points`);
    this.floor.title =
      `By chance alone, one configuration with this accuracy moves by about √(error / (2 · ${whole(n)})) = ${half.toFixed(2)} points from seed to seed ` +
      `(one standard deviation, ${whole(n)} test examples). The grey band lies around the leading lane. A lane inside it is not shown to be worse.`;
    const { x, y } = best.line;
    const edge = (sign) => y.map((v) => (v === null ? null : v + sign * 100 * noiseFloor(v / 100, n)));
    return [{ ...band(outline({ x, low: edge(-1), high: edge(1) }), fade(view.look.text, 0.1)), meta: { floor: true } }];
  }

  layout(range) {
    const { view, log, rangeY } = this;
    const { axis, logX } = view;
    const rangeX = logX ? range.map(Math.log10) : range;
    const clock = axis.id === "seconds" && !logX ? { tickmode: "array", ...timeTicks(range) } : { tickmode: "auto", nticks: 6, tickformat: "~s" };
    const frame = this.frame({
      margin: MARGIN,
      hoverdistance: 40,
      hovermode: view.allSeeds ? "closest" : "x unified",
      xaxis: this.xAxis(rangeX, {
        type: logX ? "log" : "linear", ticklabelstandoff: 4, automargin: false,
        title: { text: view.axisTitle(), standoff: 6, font: { size: 11 } }, ...clock, ...(logX && { dtick: decades(rangeX) }),
        showspikes: !view.allSeeds, spikemode: "across", spikesnap: "hovered data",
        hoverformat: axis.hover, unifiedhovertitle: { text: `${axis.before ?? ""}%{x:${axis.hover}}${axis.after ?? ""}` },
      }),
      yaxis: this.yAxis(rangeY, log, { automargin: false, ticksuffix: this.isPercent ? " %" : "" }),
    });
    frame.hoverlabel.namelength = -1;
    return frame;
  }

  onAxis(x) {
    return this.view.logX ? 10 ** x : Number(x);
  }

  keepsHover() {
    return !this.view.allSeeds;
  }
}

function band({ x, y }, fillcolor) {
  return { type: "scatter", x, y, mode: "lines", line: { width: 0 }, fill: "toself", fillcolor, hoverinfo: "skip", connectgaps: false };
}

function faint({ x, y }, color, opacity, width) {
  return { type: "scatter", x, y, mode: "lines", line: { color, width }, opacity, hoverinfo: "skip", connectgaps: false };
}

// --- the view ---------------------------------------------------------------------------------------------------

class View extends PollingView {
  constructor(parent, data) {
    super(parent, data, { id: "race", className: "iso-race" });
    Object.assign(this, {
      key: data.key, rows: [], palette: data.palette, price: data.price, lanes: [], runs: new Map(), hidden: new Set(),
      axis: AXES[0], logX: false, logY: null, share: 0, allSeeds: false, extra: false, target: null, told: {},
    });
    this.build(data.charts);
  }

  build(charts) {
    this.table = element("div", "race-rows", "race-rows", { role: "table", "aria-label": "Lanes" });
    const head = element("div", "race-row race-heads", "", { role: "row" });
    this.heads = ["Lane", "State", ...COLUMNS].map((text) => withText("div", "race-head", text, "", { role: "columnheader" }));
    head.append(...this.heads);
    this.table.append(head);
    this.cards = charts.map((chart) => new RaceCard(this, chart));
    this.area = element("div", "iso-grid race-grid", "race-grid");
    this.area.append(...this.cards.map((card) => card.node)); // all cells must stand before a chart measures its own
    this.node.append(this.table, this.controls(), this.notice, this.area);
  }

  controls() {
    const bar = element("div", "race-controls", "race-controls");
    this.axes = element("fieldset", "race-axes", "race-axis");
    this.axes.append(withText("legend", "", "Horizontal axis"));
    const name = `race-axis-${Math.random().toString(36).slice(2)}`;
    this.choices = AXES.map((axis) => {
      const label = element("label", "race-choice", `axis-${axis.id}`);
      const input = element("input", "", "", { type: "radio", name, value: axis.id });
      input.onchange = () => this.choose(axis);
      label.append(input, axis.label);
      this.axes.append(label);
      return { axis, label, input };
    });
    this.buttons = {
      logX: this.button("log x", "race-log-x", "Logarithmic horizontal axis", () => (this.logX = !this.logX)),
      logY: this.button("log y", "race-log-y", "Logarithmic losses and gradient norm", () => (this.logY = this.buttons.logY.getAttribute("aria-pressed") !== "true")),
      allSeeds: this.button("all seeds", "race-all-seeds", "A line for each seed instead of their mean and range", () => (this.allSeeds = !this.allSeeds)),
      extra: this.button("gradient norm", "race-extra", "Show the chart of the gradient norm", () => (this.extra = !this.extra)),
    };
    const smoothing = element("label", "race-smoothing");
    const look = { type: "range", min: 0, max: 100, step: 5, value: 35, "aria-label": "Smoothing" };
    this.slider = element("input", "race-slider", "race-smoothing", look);
    const smooth = () => (this.share = 0.1 * (Number(this.slider.value) / 100) ** 2); // half-life as a share of the run
    this.slider.oninput = () => (smooth(), this.paint());
    smooth();
    smoothing.append("Smoothing", this.slider);
    this.facts.setAttribute("role", "status");
    bar.append(this.axes, ...Object.values(this.buttons), smoothing, this.facts, this.resetZoom("Show all"));
    return bar;
  }

  button(text, testid, title, act) {
    return textButton("race-toggle", text, testid, () => {
      act();
      this.zoomTo(this.zoom);
    }, { title });
  }

  start() {
    this.begin(["live.css", "race.css"], 500);
  }

  end() {
    clearTimeout(this.telling);
    super.end();
  }

  // --- what the page says: it may add lanes and seeds and set a target; what it has not changed stays as it is here

  update(data) {
    this.palette = data.palette;
    this.price = data.price;
    this.how = data.how ?? {};
    for (const head of this.heads) head.title = this.how[head.textContent] ?? "";
    this.sawAlive ||= data.alive;
    this.setLanes(data.lanes);
    if (JSON.stringify(data.target) !== this.told.target) this.target = data.target;
    if (data.axis !== this.told.axis) this.axis = AXES.find(({ id }) => id === data.axis) ?? AXES[0];
    this.told = { target: JSON.stringify(data.target), axis: data.axis };
    this.showControls();
    this.restyle();
    this.poll();
  }

  setLanes(lanes) {
    const kept = new Map();
    this.lanes = lanes.map(({ label, color, baseline, runs }) => ({
      label, color, baseline,
      runs: runs.map(({ id, seed }) => {
        const run = kept.get(id) ?? this.runs.get(id) ?? new Run(id, seed);
        kept.set(id, run);
        return run;
      }),
    }));
    this.runs = kept;
    while (this.rows.length > lanes.length) this.rows.pop().node.remove();
    while (this.rows.length < lanes.length) {
      const row = new Row(this, this.rows.length);
      this.rows.push(row);
      this.table.append(row.node);
    }
    for (const place of this.hidden) if (place >= lanes.length) this.hidden.delete(place);
  }

  color({ color }) {
    return this.palette[color % this.palette.length];
  }

  // --- controls

  choose(axis) {
    this.axis = axis;
    this.zoomTo(null); // a range of steps means nothing in seconds
  }

  toggleLane(place) {
    if (!this.hidden.delete(place)) this.hidden.add(place);
    this.paint();
  }

  // A new target; the page hears of it at once, or when no other has come for `wait` ms.
  aim(target, wait = 0) {
    this.target = target;
    this.paint();
    clearTimeout(this.telling);
    this.telling = setTimeout(() => this.ended || this.onTarget(target), wait);
  }

  zoomTo(range) {
    this.zoom = range && range[1] > range[0] ? [this.logX ? range[0] : Math.max(0, range[0]), range[1]] : null;
    this.showControls();
    this.paint();
  }

  settings() {
    const { axis, price, logX, logY, share, allSeeds, extra, target, hidden, lanes } = this;
    const looks = lanes.map(({ label, color }) => [label, color]);
    return JSON.stringify([axis.id, price, logX, logY, share, allSeeds, extra, target, [...hidden], looks]);
  }

  // An axis is offered where every run's points have what it needs, or may get it.
  offers(axis) {
    if (axis.scale({}, this) === undefined) return false;
    if (axis.id !== "joules") return true;
    const traces = [...this.runs.values()].flatMap((run) => Object.values(run.traces));
    return traces.length > 0 && traces.every((trace) => trace[axis.column]);
  }

  showControls() {
    if (!this.offers(this.axis)) this.axis = AXES[0];
    for (const { axis, label, input } of this.choices) {
      label.hidden = !this.offers(axis);
      input.checked = axis === this.axis;
    }
    const logY = this.cards.some((card) => card.mounted && !card.node.hidden && card.log);
    const pressed = { logX: this.logX, logY: this.logY ?? logY, allSeeds: this.allSeeds, extra: this.extra };
    for (const [name, on] of Object.entries(pressed)) this.buttons[name].setAttribute("aria-pressed", String(on));
    this.buttons.allSeeds.hidden = !this.lanes.some((lane) => lane.runs.length > 1);
    this.resetButton.hidden = !this.zoom;
  }

  axisTitle() {
    const { axis, price } = this;
    return axis.id === "money" ? `${axis.title} (at ${price} per hour)` : axis.title;
  }

  axisText(x) {
    switch (this.axis.id) {
      case "steps": return `${count(Math.round(x))} ${Math.round(x) === 1 ? "step" : "steps"}`;
      case "samples": return `${count(Math.round(x))} samples`;
      case "epochs": return `${+x.toPrecision(3)} epochs`;
      case "seconds": return x < 10 ? `${+x.toPrecision(2)} s` : duration(x);
      case "money": return String(+x.toPrecision(3));
      default: return `${window.Plotly ? si(x) : x} ${this.axis.id === "flops" ? "FLOP" : "J"}`;
    }
  }

  isText() {
    return [...this.runs.values()].some((run) => run.about.accuracy_is_of_text);
  }

  // --- data

  // One poll for all runs that are not over.
  asks() {
    return this.going().length > 0;
  }

  going() {
    return [...this.runs.values()].filter((run) => !run.over);
  }

  async news() {
    const live = this.going();
    const { found, answer } = await this.fetch("api/compare", {
      runs: live.map((run) => run.id).join(","),
      after: live.map((run) => run.cursor).join(";"),
      of: String(this.runs.size),
    });
    if (!found) throw new Error("The server has no such route");
    for (const run of live) if (answer.runs[run.id]) run.take(answer.runs[run.id], answer.most);
    this.receivedAt = performance.now();
  }

  settled() {
    this.notice.hidden = true;
  }

  rest() {
    return [...this.runs.values()].some((run) => run.answer?.current) ? ALIVE_MS : EAGER_MS;
  }

  // --- picture

  isReady() {
    return Boolean(this.look);
  }

  showWords() {
    this.rows.forEach((row, place) => row.show(this.lanes[place], this.hidden.has(place)));
    this.showFacts();
    return [...this.runs.values()].some((run) => run.answer || run.error);
  }

  drawn() {
    this.showControls();
  }

  tellEnd() {
    const runs = [...this.runs.values()];
    if (!this.sawAlive || this.ended || !runs.length || runs.some((run) => !run.over)) return;
    this.sawAlive = false; // told once, and again only after runs were added
    const ended = {};
    for (const { status } of runs) ended[status] = (ended[status] ?? 0) + 1;
    this.onEnd(ended);
  }

  // The shared horizontal axis, in its own unit.
  range() {
    const xs = this.lanes.flatMap((lane, place) => (this.hidden.has(place) ? [] : lane.runs.flatMap((run) => ["loss", "accuracy"].map((key) => run.raw(key, this.axis, this)?.x).filter(Boolean))));
    const last = Math.max(0, ...xs.map((x) => x.at(-1)));
    const over = [...this.runs.values()].every((run) => run.over);
    const end = over && last > 0 ? last * 1.01 : niceEnd(last);
    if (!this.logX) return this.zoom ?? [0, end];
    const first = Math.min(...xs.map((x) => x.find((v) => v > 0) ?? Infinity));
    const [from, to] = this.zoom ?? [0, end];
    return [from > 0 ? from : (Number.isFinite(first) ? first : end / 1000) * 0.9, to];
  }

  // The target lines stand at pixels of the plots.
  resize() {
    super.resize();
    if (this.look) this.paint().catch(() => {});
  }

  showFacts() {
    const runs = [...this.runs.values()];
    const over = runs.filter((run) => run.over).length;
    const facts = [`${over} of ${runs.length} ${runs.length === 1 ? "run" : "runs"} done`];
    if (over < runs.length && this.receivedAt) facts.push(this.lastUpdate());
    setText(this.facts, facts.join(" · "));
  }
}

// 1.23 M, 4.56 T: three digits and a prefix.
function si(value) {
  const power = Math.max(0, Math.min(6, Math.floor(Math.log10(Math.max(value, 1)) / 3)));
  return `${+(value / 1000 ** power).toPrecision(3)} ${["", "k", "M", "G", "T", "P", "E"][power]}`;
}
