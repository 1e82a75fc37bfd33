// The live view of a race: a row for each lane (a compared configuration) and charts that all lanes share. One poll fetches
// the new points of all runs.
//
// Axis, scale, zoom, smoothing and the target are state of this view and survive every update, and so do the points when seeds
// or lanes are added. The page sends the list of charts with their names and units (engine/charts/facts.py).

const VERSION = new URL(import.meta.url).searchParams.get("v") ?? "";
const load = (name) => import(new URL(`${name}?v=${VERSION}`, import.meta.url).href); // a static import would lose the version
const { PollingView, count, duration, element, keep, setText, textButton, withText } = await load("common.js");
const { AXES, Run, niceEnd, targetText } = await load("lanes.js");
const { RaceCard } = await load("race_card.js");
const { COLUMNS, Row } = await load("race_rows.js");

const ALIVE_MS = 500;
const EAGER_MS = 150; // until the first point, because a user has just pressed Run

// --- called by Streamlit ---------------------------------------------------------------------------------------

export function mount({ data, parentElement, setStateValue, setTriggerValue }) {
  const fits = (view) => view.key === data.key;
  return keep(parentElement, fits, () => new View(parentElement, data), (view) => {
    view.onEnd = (ended) => setTriggerValue("ended", ended);
    view.onTarget = (target) => setStateValue("target", target);
    view.update(data);
  });
}

// --- the view ---------------------------------------------------------------------------------------------------

class View extends PollingView {
  constructor(parent, data) {
    super(parent, data, { id: "race", className: "iso-race" });
    Object.assign(this, {
      key: data.key, rows: [], palette: data.palette, price: data.price, lanes: [], runs: new Map(), hidden: new Set(),
      axis: AXES[0], logX: false, logY: null, share: 0, allSeeds: false, extra: false, target: null, given: {},
    });
    this.build(data.charts);
  }

  build(charts) {
    this.table = element("div", "race-rows", "race-rows", { role: "table", "aria-label": "Configurations" });
    const head = element("div", "race-row race-heads", "", { role: "row" });
    const column = (title) => withText("div", "race-head", title, "", { role: "columnheader" });
    this.heads = COLUMNS.map(({ title }) => column(title));
    head.append(column("Configuration"), column("State"), ...this.heads);
    this.table.append(head);
    this.cards = charts.map((chart) => new RaceCard(this, chart));
    this.area = element("div", "iso-grid race-grid", "race-grid");
    this.area.append(...this.cards.map((card) => card.node)); // all cells must stand before a chart measures its own
    this.lacking = element("p", "iso-facts", "race-lacking", { role: "status", hidden: "" });
    this.node.append(this.table, this.controls(), this.notice, this.lacking, this.area);
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
    clearTimeout(this.targetTimer);
    super.end();
  }

  // --- data of the page: it may add lanes and seeds and set a target; a value that it has not changed keeps its state here

  update(data) {
    this.palette = data.palette;
    this.price = data.price;
    this.how = data.how ?? {};
    COLUMNS.forEach(({ key }, i) => (this.heads[i].title = this.how[key] ?? ""));
    this.wasAlive ||= data.alive;
    this.setLanes(data.lanes);
    if (JSON.stringify(data.target) !== this.given.target) this.target = data.target;
    if (data.axis !== this.given.axis) this.axis = AXES.find(({ id }) => id === data.axis) ?? AXES[0];
    this.given = { target: JSON.stringify(data.target), axis: data.axis };
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

  // A new target. The page gets it after `wait` ms, unless another one follows before.
  setTarget(target, wait = 0) {
    this.target = target;
    this.paint();
    this.poll();
    clearTimeout(this.targetTimer);
    this.targetTimer = setTimeout(() => this.ended || this.onTarget(target), wait);
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

  // An axis is offered if every run's points have its column, or may get it.
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

  // One poll for all runs that are not over, or that were not asked yet where they reached the target.
  needsPoll() {
    return this.asked().length > 0;
  }

  asked() {
    const target = targetText(this.target);
    return [...this.runs.values()].filter((run) => !run.over || (target && !run.error && run.reached.target !== target));
  }

  async fetchUpdate() {
    const live = this.asked();
    const target = targetText(this.target);
    const { found, answer } = await this.fetch("api/compare", {
      runs: live.map((run) => run.id).join(","),
      after: live.map((run) => run.cursor).join(";"),
      of: String(this.runs.size),
      target,
    });
    if (!found) throw new Error("The server has no such route");
    for (const run of live) if (answer.runs[run.id]) run.take(answer.runs[run.id], answer.most, target);
    this.receivedAt = performance.now();
  }

  afterPoll() {
    this.notice.hidden = true;
  }

  pollDelay() {
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

  reportEnd() {
    const runs = [...this.runs.values()];
    if (!this.wasAlive || this.ended || !runs.length || runs.some((run) => !run.over)) return;
    this.wasAlive = false; // reported once, and again only after runs were added
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

  // The target lines are placed in pixels of the plots.
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
    const lacking = this.lanes.filter((lane) => lane.runs.length && lane.runs.every((run) => run.lacks(this.axis, this))).map(({ label }) => label);
    this.lacking.hidden = !lacking.length;
    setText(this.lacking, `Not drawn over this axis, because its file does not say it: ${lacking.join(", ")}.`);
  }
}

// Three significant digits and an SI prefix: 1.23 M, 4.56 T.
function si(value) {
  const power = Math.max(0, Math.min(6, Math.floor(Math.log10(Math.max(value, 1)) / 3)));
  return `${+(value / 1000 ** power).toPrecision(3)} ${["", "k", "M", "G", "T", "P", "E"][power]}`;
}
