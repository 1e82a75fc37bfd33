// The live view of the machine: charts of CPU, memory and GPUs on one time axis, with the runs of that time.
//
// The axis shows the reader's clock. Plotly writes dates in UTC, so times are shifted by the reader's own offset before they
// are drawn.

const VERSION = new URL(import.meta.url).searchParams.get("v") ?? "";
const load = (name) => import(new URL(`${name}?v=${VERSION}`, import.meta.url).href); // a static import would lose the version
const {
  PollingView, capital, displayUnit, duration, element, fade, keep, refill, setText, textButton, threeDigits, withText,
} = await load("common.js");
const { GAP_MS, GPU, SYSTEM, clock, lowerBound, nowOf, toX, windowOf } = await load("monitor_card.js");
const { Group, runLink, titled, words } = await load("monitor_group.js");

const POLL_MS = 1000;
const KEPT_MS = 900_000;
const MOST_POINTS = 5000; // of a trace; with more, everything is fetched again, thinned
const OPEN_GPUS = 2; // with more GPUs, the others open on a click
const MOST_RUNS = 6;
const WINDOWS = [[60, "1 min"], [300, "5 min"], [900, "15 min"]];

// --- called by Streamlit ---------------------------------------------------------------------------------------

export function mount({ data, parentElement, setTriggerValue }) {
  return keep(parentElement, () => true, () => new View(parentElement, data), (view) => {
    view.onInterval = (seconds) => setTriggerValue("interval", seconds);
    view.update(data);
  });
}

// --- the view ---------------------------------------------------------------------------------------------------

class View extends PollingView {
  constructor(parent, data) {
    super(parent, data, { id: "monitor", prefix: "", className: "iso-monitor" });
    Object.assign(this, { traces: {}, missing: {}, processes: [], runs: [], rests: [], cores: [], groups: [] });
    Object.assign(this, { about: null, epoch: 0, stamp: "", pointer: null, paused: false, windowS: 300 });
    this.build();
  }

  build() {
    const head = element("div", "iso-head");
    this.pauseButton = textButton("mon-button", "Pause", "pause", () => this.pause());
    this.windows = element("div", "mon-choice", "", { role: "group", "aria-label": "Time shown" });
    for (const [seconds, name] of WINDOWS) {
      this.windows.append(textButton("mon-button", name, `window-${seconds}`, () => {
        this.windowS = seconds;
        this.showWindows();
        this.zoomTo(null);
      }));
    }
    const label = element("label", "iso-facts");
    this.interval = element("select", "mon-select", "interval");
    this.interval.onchange = () => this.onInterval(Number(this.interval.value));
    label.append("Read every ", this.interval);
    head.append(this.windows, this.pauseButton, label, this.facts, this.resetZoom("Back to live"));
    this.lane = element("section", "iso-card mon-runs", "runs", { hidden: "" });
    this.area = element("div", "mon-body");
    this.node.append(head, this.notice, this.lane, this.area);
    this.showWindows();
  }

  update(data) {
    this.interval.replaceChildren(...data.intervals_s.map(intervalOption));
    this.interval.disabled = !data.may_set_interval;
    this.interval.title = data.may_set_interval ? "Applies to everybody who watches this machine" : "Only an admin can change this";
    this.showInterval();
    this.restyle();
  }

  restyle() {
    this.warnColor = getComputedStyle(this.node).getPropertyValue("--st-orange-color").trim() || "#b9660a";
    super.restyle();
  }

  showInterval() {
    if (!this.answer || document.activeElement === this.interval) return;
    const value = String(this.answer.interval_s);
    if (![...this.interval.options].some((option) => option.value === value)) this.interval.append(intervalOption(value));
    this.interval.value = value;
  }

  showWindows() {
    [...this.windows.children].forEach((button, n) => button.setAttribute("aria-pressed", String(WINDOWS[n][0] === this.windowS)));
  }

  charts() {
    return this.groups.flatMap(({ cards }) => cards);
  }

  start() {
    this.watcher = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        const card = this.charts().find(({ node }) => node === target);
        if (card) card.seen = isIntersecting || !target.offsetParent;
      }
      this.paint().catch(() => {});
    }, { rootMargin: "200px" });
    this.begin(["live.css", "monitor.css"], 500);
    this.poll();
  }

  end() {
    this.watcher.disconnect();
    super.end();
  }

  // --- data

  needsPoll() {
    return !this.paused;
  }

  async fetchUpdate() {
    const { found, answer } = await this.fetch("api/hardware", { after: this.cursor });
    if (!found) throw new Error("The server has no readings");
    this.take(answer);
  }

  afterPoll() {
    this.showTrouble();
  }

  pollDelay() {
    return POLL_MS;
  }

  take(answer) {
    if (answer.reset) {
      this.traces = {};
      this.epoch += 1;
      this.debug.loads += 1;
      for (const [name, { x, y }] of Object.entries(answer.traces)) this.traces[name] = { x: x.map(toX), y };
    }
    if (answer.about) this.describe(answer.about);
    if (answer.rows) this.append(answer.rows);
    for (const name of ["missing", "processes", "runs", "rests"]) if (answer[name]) this[name] = answer[name];
    if (answer.latest) this.cores = answer.latest.cores;
    this.newest = answer.newest ?? (answer.reset ? undefined : this.newest);
    this.answer = answer;
    this.receivedAt = performance.now();
    const tooMany = Object.values(this.traces).some(({ x }) => x.length > MOST_POINTS);
    this.cursor = tooMany ? "" : answer.cursor;
    this.stamp = `${this.epoch}:${this.newest}`;
    this.showInterval();
  }

  append({ x, y }) {
    const added = x.map(toX);
    for (const [name, values] of Object.entries(y)) {
      const held = (this.traces[name] ??= { x: [], y: [] });
      const keep = lowerBound(held.x, added[0]); // a clock that was set back repeats times
      const gap = added[0] - held.x[keep - 1] > Math.max(GAP_MS, 3000 * this.answer.interval_s);
      held.x.splice(keep, Infinity, ...(gap ? [added[0] - 1] : []), ...added);
      held.y.splice(keep, Infinity, ...(gap ? [null] : []), ...values);
    }
    for (const [name, held] of Object.entries(this.traces)) {
      if (!y[name]) held.x.push(added[0]), held.y.push(null); // this column cannot be read any more, so its line ends here
      const old = lowerBound(held.x, added.at(-1) - KEPT_MS);
      if (old > 200) held.x.splice(0, old), held.y.splice(0, old);
    }
  }

  // Makes the cards for the columns; again when the GPUs or the columns have changed.
  describe(about) {
    const known = this.about && JSON.stringify([this.about.gpus, this.about.columns]) === JSON.stringify([about.gpus, about.columns]);
    this.about = about;
    if (known) return;
    for (const card of this.charts()) if (card.mounted) window.Plotly.purge(card.plot);
    this.watcher.disconnect();
    this.groups = [new Group(this, "CPU, memory, disk and network", SYSTEM, "", true)];
    const gpus = about.gpus.map((name, n) => new Group(this, `GPU ${n} · ${name}`, GPU, `gpu${n}.`, n < OPEN_GPUS));
    this.groups.unshift(...gpus);
    this.noGpu = element("section", "iso-card mon-none", "gpu-reason", { hidden: "" });
    this.area.replaceChildren(...this.groups.map(({ node }) => node), this.noGpu);
    for (const card of this.charts()) {
      card.describe();
      card.restyle();
      this.watcher.observe(card.node);
    }
  }

  // --- picture

  // Readings since this time count as current.
  get freshFrom() {
    return this.newest === undefined ? Infinity : toX(this.newest) - Math.max(GAP_MS, 3000 * this.answer.interval_s);
  }

  get now() {
    return this.answer.now + (this.paused ? 0 : (performance.now() - this.receivedAt) / 1000);
  }

  isReady() {
    return Boolean(this.about);
  }

  // A zoom during a redraw causes one more redraw.
  async paint() {
    this.again = true;
    if (this.painting) return;
    this.painting = true;
    try {
      while (this.again && !this.ended) {
        this.again = false;
        await super.paint();
      }
    } finally {
      this.painting = false;
    }
  }

  showWords() {
    this.showRuns(this.range());
    this.showNoGpu();
    return true;
  }

  range() {
    const end = toX(this.answer.now);
    return this.zoom ?? [end - 1000 * this.windowS, end];
  }

  async redraw(Plotly) {
    for (const group of this.groups) {
      await group.update(Plotly, this.range());
      if (this.ended) return;
    }
  }

  drawn() {
    this.showFacts();
  }

  showNoGpu() {
    const why = this.about.gpus.length ? "" : (this.missing.gpu ?? "");
    this.noGpu.hidden = !why;
    if (why) refill(this.noGpu, why, () => [titled("GPU"), words(capital(why))]);
  }

  // The runs of the time shown: the name of each, then a bar for its time.
  showRuns(range) {
    const [from, to] = range;
    const inside = this.runs.filter((run) => toX(run.begin) < to && (run.end === null || toX(run.end) > from));
    inside.sort((a, b) => b.begin - a.begin);
    this.lane.hidden = !inside.length;
    const share = (x) => `${(100 * (Math.min(to, Math.max(from, x)) - from)) / (to - from)}%`;
    const rows = inside.slice(0, MOST_RUNS).map((run) => {
      const row = element("div", "mon-run", `run-${run.run_id}`);
      const track = element("div", "mon-track");
      const bar = element("div", "mon-bar");
      bar.toggleAttribute("data-alive", run.end === null);
      bar.style.left = share(toX(run.begin));
      bar.style.right = `calc(100% - ${share(run.end === null ? to : toX(run.end))})`;
      bar.title = `${clock(toX(run.begin))} – ${run.end === null ? "now" : clock(toX(run.end))}`;
      track.append(bar);
      row.append(runLink(run.run_id, run.words), track);
      return row;
    });
    if (inside.length > MOST_RUNS) rows.push(words(`and ${inside.length - MOST_RUNS} earlier ones`));
    const ends = element("div", "mon-run mon-ends");
    const times = element("div");
    for (const x of range) times.append(withText("span", "", clock(x)));
    ends.append(document.createElement("span"), times);
    refill(this.lane, [inside, range.map((x) => Math.round(x / 250))], () => [titled("Runs"), ...rows, ends]);
  }

  spanShapes([from, to]) {
    const { look } = this;
    return this.runs
      .map((run) => [toX(run.begin), run.end === null ? to : toX(run.end)])
      .filter(([begin, end]) => begin < to && end > from)
      .slice(-40)
      .map(([x0, x1]) => ({ type: "rect", x0, x1, yref: "paper", y0: 0, y1: 1, layer: "below", fillcolor: fade(look.series[0], 0.08), line: { color: fade(look.series[0], 0.25), width: 1 } }));
  }

  // The times when GPUs were not read; no line is drawn through them.
  restsIn([from, to]) {
    const rests = this.rests.map(([begin, end]) => [toX(begin), end === null ? to : toX(end)]);
    return rests.filter(([begin, end]) => begin < to && end > from);
  }

  restShapes(range) {
    const { look } = this;
    return this.restsIn(range).map(([x0, x1]) => ({
      type: "rect", x0, x1, yref: "paper", y0: 0, y1: 1, layer: "below", fillcolor: look.grid, line: { width: 0 },
      label: { text: "not read", font: { color: look.faint, size: 11, family: look.font } },
    }));
  }

  isThrottled(bits) {
    return bits !== null && (bits & ~this.about.throttle_harmless) !== 0;
  }

  throttleWords(key, range) {
    const bits = nowOf(this.traces[key], this.freshFrom);
    const by = (all) => Object.entries(this.about.throttle).filter(([bit, text]) => all & Number(bit) && text !== "idle").map(([, text]) => text).join(", ");
    const words = bits && !this.missing[key] ? [by(bits) ? `Clock limited by ${by(bits)}.` : "Idle."] : [];
    const seen = this.traces[key] ? windowOf(this.traces[key], range).y.filter((b) => this.isThrottled(b)).reduce((all, b) => all | b, 0) : 0;
    if (seen && !this.isThrottled(bits)) words.push(`Orange: clock limited by ${by(seen)}.`);
    return words;
  }

  // Energy from the counter's first and last visible reading; nothing if the counter was reset in between.
  energyWords(key, [from, to]) {
    const trace = this.traces[key];
    if (!trace) return [];
    const rows = trace.x.map((x, n) => [x, trace.y[n]]).filter(([x, y]) => y !== null && x >= from && x <= to);
    if (rows.length < 2 || rows.some(([, y], n) => n && y < rows[n - 1][1])) return [];
    const joules = rows.at(-1)[1] - rows[0][1];
    const [factor, unit] = joules >= 1e3 ? displayUnit("J", joules) : [1, "J"];
    return [`${threeDigits(joules * factor)} ${unit} in ${duration((rows.at(-1)[0] - rows[0][0]) / 1000)}, measured by the energy counter.`];
  }

  pause() {
    this.paused = !this.paused;
    setText(this.pauseButton, this.paused ? "Resume" : "Pause");
    this.pauseButton.setAttribute("aria-pressed", String(this.paused));
    this.showFacts();
    if (!this.paused) this.poll();
  }

  // The pointer is at this time in one chart, so the others show their values at this time.
  pointAt(x) {
    if (this.pointer === x) return;
    this.pointer = x;
    cancelAnimationFrame(this.pointing);
    this.pointing = requestAnimationFrame(() => {
      const range = this.range();
      for (const { open, cards } of this.groups) {
        for (const card of open ? cards : []) {
          if (!card.present) continue;
          card.showTexts(card.series(range), range);
          card.showCursor();
        }
      }
      this.showFacts();
    });
  }

  showFacts() {
    if (!this.answer) return;
    const age = this.newest === undefined ? null : Math.max(0, this.now - this.newest);
    const facts = [];
    if (this.pointer !== null) facts.push(`at ${clock(this.pointer)}`);
    else if (this.paused) facts.push(`paused at ${clock(toX(this.answer.now))}`);
    else if (age !== null) facts.push(`last reading ${duration(age)} ago`);
    setText(this.facts, facts.join(" · "));
  }

  showTrouble() {
    const why = this.answer.why ?? "";
    if (why) this.showNotice(this.newest === undefined ? why : `No new readings for ${duration(Math.max(0, this.now - this.newest))}. ${why}`);
    else if (!Object.keys(this.traces).length) this.showNotice("Waiting for the first readings.");
    else this.notice.hidden = true;
  }
}

function intervalOption(seconds) {
  return withText("option", "", `${seconds} s`, "", { value: seconds });
}
