// A chart of a race: the lines of all configurations, the band of their seeds, the target line and the noise floor.

const VERSION = new URL(import.meta.url).searchParams.get("v") ?? "";
const load = (name) => import(new URL(`${name}?v=${VERSION}`, import.meta.url).href); // a static import would lose the version
const {
  decades, element, extremes, fade, include, literal, lossText, setText, timeTicks, whole, withText, yRange,
} = await load("common.js");
const { Card } = await load("card.js");
const { joined, meanOf, noiseFloor, outline, tail } = await load("lanes.js");

const LONGEST_NAME = 40;
const MARGIN = { l: 52, r: 16, t: 10, b: 44 }; // fixed, because the target line lies over the chart at a place computed here

const TEXTS = { loss: lossText, accuracy: (v) => `${+v.toFixed(2)} %` }; // of a target, by the chart's format

const shorten = (text) => (text.length > LONGEST_NAME ? `${text.slice(0, LONGEST_NAME - 1)}…` : text);

export class RaceCard extends Card {
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
      if (!this.input.reportValidity()) return; // the typed text stays until it is corrected or the field is left
      this.typing = false;
      const { view } = this;
      if (this.input.value !== "") view.setTarget({ metric: this.metric, value: Number(this.input.value) / this.chart.factor });
      else if (view.target?.metric === this.metric) view.setTarget(null);
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
      if (kept && value !== null) view.setTarget({ metric: this.metric, value: value / this.chart.factor });
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
    view.setTarget({ metric: this.metric, value: +(value / this.chart.factor).toPrecision(8) }, 400); // the page gets it when no further key is pressed
  }

  // The target in this chart's unit. If the target belongs to the other chart, the middle of this axis: the grip waits there.
  shownTarget() {
    const { target } = this.view;
    if (target?.metric === this.metric) return target.value * this.chart.factor;
    const [low, high] = this.rangeY;
    return this.unlog((low + high) / 2);
  }

  unlog(v) {
    return this.log ? 10 ** v : v;
  }

  // The step of one key press: a round number near 1/200 of the axis.
  grain() {
    const [low, high] = this.rangeY.map((v) => this.unlog(v));
    return 10 ** Math.floor(Math.log10((high - low) / 100));
  }

  get inner() {
    return this.plot.clientHeight - MARGIN.t - MARGIN.b;
  }

  // Pixels above the bottom of the axis.
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

  // The lines of each visible lane: one for each seed, and the mean of several.
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

  // The top of the axis. A lane that diverges leaves the chart there: with its 1e34 on the axis all others would be flat lines.
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
        ? [this.stroke(l.lane, l.mean, `${shorten(l.lane.label)} · mean of ${l.seeds.length}`)]
        : l.seeds.map((seed) => this.stroke(l.lane, seed, several(l.lane) ? `${shorten(l.lane.label)} · seed ${seed.run.seed}` : shorten(l.lane.label), view.allSeeds && several(l.lane))),
    );
    const crossings = aimed === null ? [] : lanes.flatMap((l) => this.crossings(l, aimed));
    return [...this.noise(lanes), ...bands, ...raw, ...tails, ...lines, ...crossings, ...lanes.flatMap((l) => this.marks(l))];
  }

  raw({ lane, seeds }) {
    const line = seeds[0].run.raw(this.chart.key, this.view.axis, this.view, this.chart.factor);
    return line ? [faint(line, this.view.color(lane), 0.22, 1)] : [];
  }

  // The parts of the seeds' lines beyond the end of their mean.
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
      name: literal(shorten(lane.label)), customdata: found.map(({ step, between }) => [step, ...between]),
      hovertemplate: "target reached at step %{customdata[0]:,}, between the evaluations after steps %{customdata[1]:,} and %{customdata[2]:,}", meta: { lane: view.lanes.indexOf(lane), crossing: true },
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
      name: literal(shorten(lane.label)), text: found.map(({ word, step }) => `${word} at step ${whole(step)}`),
      hovertemplate: "%{text}", meta: { lane: place, mark: true },
    }];
  }

  // The noise floor of the accuracy as a band around the leading lane.
  noise(lanes) {
    const { view } = this;
    const last = (line) => line.y.findLast((v) => v !== null) ?? -Infinity;
    const known = lanes.filter(({ seeds }) => seeds[0].run.about.test_predictions);
    const best = this.metric === "test_accuracy" && known.map((l) => ({ ...l, line: l.mean ?? l.seeds[0] })).reduce((a, b) => (a && last(a.line) >= last(b.line) ? a : b), null);
    const end = best && last(best.line);
    this.floor.hidden = !best || end === -Infinity;
    if (this.floor.hidden) return [];
    const { test_predictions: n, accuracy_is_of_text: isText } = best.seeds[0].run.about;
    const half = 100 * noiseFloor(end / 100, n);
    setText(this.floor, `noise floor ±${half.toFixed(2)} points`);
    this.floor.title =
      `By chance alone, the accuracy of such a configuration varies by about √(error / (2 · ${whole(n)})) = ${half.toFixed(2)} points from seed to seed ` +
      `(one standard deviation, ${whole(n)} test ${isText ? "characters" : "samples"}). The grey band lies around the leading configuration. A configuration inside the band is not necessarily worse.`;
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
