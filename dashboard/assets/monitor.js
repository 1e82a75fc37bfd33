// The live view of the machine: charts of CPU, memory and GPUs on one time axis, with the runs of that time.
//
// The axis shows the reader's clock. Plotly writes dates in UTC, so times are shifted by the reader's own offset before it
// sees them.

const VERSION = new URL(import.meta.url).searchParams.get("v") ?? "";
const load = (name) => import(new URL(`${name}?v=${VERSION}`, import.meta.url).href); // a static import would lose the version
const {
  PollingView, ROOT, capital, displayUnit, duration, element, extremes, fade, include, keep, refill, setText, textButton, threeDigits,
  whole, withText, yRange,
} = await load("common.js");
const { Card } = await load("card.js");

const POLL_MS = 1000;
const KEPT_MS = 900_000;
const MOST_POINTS = 5000; // of a trace; beyond, everything is fetched again, thinned
const NEAR_MS = 15_000; // a value this far from the pointer still counts as the value of that time
const GAP_MS = 2_000; // at least; beyond it and three intervals the line is broken
const OPEN_GPUS = 2; // with more GPUs, the others open on a click
const MOST_RUNS = 6;
const WINDOWS = [[60, "1 min"], [300, "5 min"], [900, "15 min"]];
const OFFSET_MS = -60_000 * new Date().getTimezoneOffset();
const toX = (unix_s) => Math.round(unix_s * 1000) + OFFSET_MS;
const two = (value) => String(value).padStart(2, "0");
const clock = (x) => { const at = new Date(x); return [at.getUTCHours(), at.getUTCMinutes(), at.getUTCSeconds()].map(two).join(":"); };

// --- what Streamlit calls ---------------------------------------------------------------------------------------

export function mount({ data, parentElement, setTriggerValue }) {
  return keep(parentElement, () => true, () => new View(parentElement, data), (view) => {
    view.onInterval = (seconds) => setTriggerValue("interval", seconds);
    view.update(data);
  });
}

// --- the charts -------------------------------------------------------------------------------------------------

// `keys` are columns, those of a GPU without "gpuN."; the first one is the value in the header.
const SYSTEM = [
  { id: "cpu", title: "CPU", keys: [["cpu.busy_percent", "all cores"], ["cpu.busiest_percent", "busiest core"]], cores: true, least: 100, most: 100 },
  { id: "own", title: "Isoflop's CPU", keys: [["own.cpu_percent", "supervisor and runs"]], note: "100 % is one core", least: 100 },
  { id: "memory", title: "Memory", keys: [["memory.used_bytes", "used"], ["own.memory_bytes", "Isoflop"], ["memory.swap_used_bytes", "swap"]], total: ["memory.used_bytes", "memory.available_bytes"] },
  { id: "pressure", title: "Programs that wait", keys: [["pressure.cpu_percent", "for a core"], ["pressure.memory_percent", "for memory"], ["pressure.io_percent", "for the disk"]], least: 10, most: 100 },
  { id: "load", title: "Load", keys: [["cpu.load_1min", "1 min average"]], least: 1 },
  { id: "disk", title: "Disk", keys: [["disk.read_bytes_per_s", "read"], ["disk.write_bytes_per_s", "written"]] },
  { id: "network", title: "Network", keys: [["network.received_bytes_per_s", "received"], ["network.sent_bytes_per_s", "sent"]] },
  { id: "frequency", title: "CPU frequency", keys: [["cpu.frequency_hz", "mean of the cores"]] },
  { id: "cpu-power", title: "CPU power", keys: [["cpu.power_w", "packages"]] },
];
const GPU = [
  {
    id: "activity", title: "Activity", least: 100, most: 100,
    keys: [["utilization_percent", "utilization"], ["sm_active_percent", "SMs active"], ["tensor_active_percent", "tensor cores"], ["memory_bandwidth_percent", "memory bandwidth"]],
    warning: "Utilization is the share of time in which any kernel ran, however small: 100 % does not mean the GPU is full.",
  },
  { id: "memory", title: "Memory", keys: [["memory_used_bytes", "used, all programs"]], total: ["memory_total_bytes"] },
  { id: "power", title: "Power", keys: [["power_w", "board"], ["power_limit_w", "limit", "dash"]], energy: "energy_j" },
  { id: "temperature", title: "Temperature", keys: [["temperature_c", "chip"]] },
  { id: "clocks", title: "Clocks", keys: [["sm_clock_hz", "SMs"], ["memory_clock_hz", "memory"]], throttle: "throttle_bits" },
  { id: "pcie", title: "PCIe", keys: [["pcie_sent_bytes_per_s", "sent"], ["pcie_received_bytes_per_s", "received"]] },
  { id: "nvlink", title: "NVLink", keys: [["nvlink_sent_bytes_per_s", "sent"], ["nvlink_received_bytes_per_s", "received"]] },
];

// Plotly gives a place on an axis of dates as a number or as a text in UTC.
const toMs = (value) => (typeof value === "number" ? value : Date.parse(`${String(value).replace(" ", "T")}Z`));

function figure(value, unit) {
  if (unit === "%") return String(Math.round(value));
  return unit === "MHz" || unit === "°C" ? whole(value) : threeDigits(value);
}

class MetricCard extends Card {
  constructor(view, chart, prefix = "") {
    const id = `${prefix.replace(".", "-")}${chart.id}`;
    super(view, { ...chart, how: [] }, { id });
    Object.assign(this, { prefix, seen: true, keys: chart.keys.map(([key, name, dash]) => ({ key: prefix + key, name, dash })) });
    this.unitName = document.createElement("small");
    this.title.append(" ", this.unitName);
    this.addValue(id);
    this.note.remove();
    this.line = element("div", "mon-cursor", "", { hidden: "" });
    this.frameNode = element("div", "mon-frame");
    this.plot.before(this.frameNode);
    this.frameNode.append(this.plot, this.line);
    if (chart.cores) this.frameNode.after((this.bars = element("div", "mon-cores", "cores")));
  }

  // What the columns are, once it is known.
  describe() {
    const { about } = this.view;
    const metric = (key) => about.metrics[key.replace(/^(gpu|core)\d+\./, "$1.")];
    this.metric = metric(this.keys[0].key);
    const lines = this.keys.filter(({ key }) => metric(key)).map(({ key }) => `${metric(key).title}, measured: ${metric(key).how}.`);
    if (this.chart.energy && metric(this.prefix + this.chart.energy)) lines.push(`Energy, measured: ${metric(this.prefix + this.chart.energy).how}.`);
    this.explain(lines);
    this.traces = [...this.keys];
    if (this.chart.cores && about.columns.some((name) => name.startsWith("core"))) {
      const cores = about.columns.filter((name) => name.startsWith("core"));
      this.traces.unshift(...cores.map((key) => ({ key, name: key.split(".")[0].replace("core", "core "), faint: true })));
    }
    this.entries.clear();
    this.legend.replaceChildren();
    if (this.keys.length === 1) this.legend.append(this.chart.note ?? this.keys[0].name);
    else for (const { key, name } of this.keys) this.addEntry(key, name).append(element("span", "mon-at"));
  }

  has(key) {
    return Boolean(this.view.traces[key]?.y.some((v) => v !== null));
  }

  // Whether any column of this chart can be read. Why the others cannot is a sentence here or in the group's card.
  get present() {
    return this.keys.some(({ key }) => this.has(key));
  }

  reasons() {
    const { missing, about } = this.view;
    return this.keys
      .filter(({ key }) => missing[key] && missing[key] !== this.saidAbove)
      .map(({ key, name }) => [about.metrics[key.replace(/^gpu\d+\./, "gpu.")]?.title ?? name, missing[key]]);
  }

  series(range) {
    const found = this.traces.filter(({ key }) => this.has(key)).map((trace) => ({ trace, ...windowOf(this.view.traces[trace.key], range) }));
    const { high } = extremes(found, range);
    const totals = (this.chart.total ?? []).map((key) => lastOf(this.view.traces[this.prefix + key])).filter((v) => v !== null);
    this.total = totals.length && totals.length === this.chart.total.length ? totals.reduce((sum, v) => sum + v, 0) : null;
    [this.factor, this.shownUnit] = displayUnit(this.metric?.unit ?? "", Math.max(high, this.total ?? 0));
    for (const one of found) if (this.factor !== 1) one.y = one.y.map((v) => (v === null ? null : v * this.factor));
    return found;
  }

  async update(Plotly, range) {
    this.node.hidden = !this.present;
    if (this.node.hidden) return;
    const all = this.series(range);
    this.say(all, range);
    if (!this.seen) return; // drawn when it comes into sight
    const shown = all.filter((one) => !this.hidden.has(one.trace.key));
    const seen = extremes(shown, range);
    if (this.total !== null) include(seen, this.total * this.factor);
    const state = [this.view.stamp, range, this.shownUnit, [...this.hidden]].join("|");
    await this.draw(Plotly, state, () => {
      const rangeY = yRange({ from_zero: true, least: this.chart.least, most: this.chart.most }, seen, false);
      if (this.chart.most) rangeY[1] = Math.min(rangeY[1], this.chart.most * 1.04);
      return [shown.map((one) => this.lineOf(one)), this.layout(range, rangeY)];
    });
    this.showCursor();
  }

  lineOf({ trace, x, y }) {
    const n = this.keys.findIndex(({ key }) => key === trace.key);
    return {
      type: "scatter", x, y, mode: "lines", connectgaps: false, name: trace.name,
      line: { color: trace.faint ? fade(this.color(0), 0.28) : trace.dash ? this.view.look.faint : this.color(n), width: trace.faint ? 1 : 1.7, dash: trace.dash },
      hoverinfo: trace.faint ? "skip" : undefined,
      hovertemplate: trace.faint ? undefined : `${trace.name} %{y:.3~r} ${this.shownUnit}<extra></extra>`,
    };
  }

  layout(range, rangeY) {
    return this.frame({
      xaxis: this.xAxis(range, { type: "date", nticks: 5, tickformat: "%H:%M:%S", hoverformat: "%H:%M:%S" }),
      yaxis: this.yAxis(rangeY, false, { tickformat: "~f" }),
      shapes: [...this.view.spanShapes(range), ...(this.prefix ? this.view.restShapes(range) : []), ...this.throttleShapes(range)],
    });
  }

  onAxis(value) {
    return toMs(value);
  }

  point(x) {
    this.view.pointAt(x ?? null);
  }

  // The times in which something limited the clocks.
  throttleShapes(range) {
    const trace = this.chart.throttle && this.view.traces[this.prefix + this.chart.throttle];
    const shapes = [];
    for (let i = 0; trace && i < trace.x.length; i++) {
      if (!this.view.isThrottled(trace.y[i])) continue;
      const from = trace.x[i];
      while (i + 1 < trace.x.length && this.view.isThrottled(trace.y[i + 1])) i += 1;
      const to = trace.x[i + 1] ?? trace.x[i];
      if (to < range[0] || from > range[1] || shapes.length > 60) continue;
      shapes.push({ type: "rect", x0: from, x1: to, yref: "paper", y0: 0, y1: 0.04, fillcolor: this.view.warnColor, line: { width: 0 } });
    }
    return shapes;
  }

  // The newest value, or that under the pointer, and the words below.
  say(all, range) {
    setText(this.unitName, this.shownUnit);
    const at = this.view.pointer;
    for (const { trace, x, y } of all) {
      const value = at === null ? (this.view.zoom ? lastOf({ y }) : nowOf({ x, y }, this.view.freshFrom)) : valueAt({ x, y }, at);
      const text = value === null || value === undefined ? "–" : figure(value, this.shownUnit);
      if (trace.key === this.keys[0].key) {
        this.showValue(text, this.total === null ? this.shownUnit : `of ${figure(this.total * this.factor, this.shownUnit)} ${this.shownUnit}`);
      }
      const entry = this.entries.get(trace.key);
      if (entry) setText(entry.lastChild, text);
    }
    for (const [key, button] of this.entries) button.hidden = !this.has(key);
    const words = reasonLines(this.reasons());
    if (this.chart.warning) words.unshift(this.chart.warning);
    if (this.chart.throttle) words.push(...this.view.throttleWords(this.prefix + this.chart.throttle, range));
    if (this.chart.energy) words.push(...this.view.energyWords(this.prefix + this.chart.energy, range));
    setText(this.words, words.join(" "));
    this.words.hidden = !words.length;
    if (this.bars) this.showCores();
  }

  showCores() {
    const { cores } = this.view;
    this.bars.hidden = cores.length < 2;
    while (this.bars.children.length > cores.length) this.bars.lastChild.remove();
    while (this.bars.children.length < cores.length) this.bars.append(document.createElement("i"));
    cores.forEach((busy, n) => {
      const bar = this.bars.children[n];
      bar.style.setProperty("--busy", `${busy ?? 0}%`);
      bar.title = `Core ${n}, now: ${busy === null ? "unknown" : `${Math.round(busy)} %`}`;
    });
  }

  showCursor() {
    const at = this.view.pointer;
    const axis = this.mounted && this.plot._fullLayout?.xaxis;
    const left = at !== null && axis ? axis._offset + axis.d2p(at) : null;
    this.line.hidden = left === null || this.hoverX !== undefined || left < axis._offset || left > axis._offset + axis._length;
    if (!this.line.hidden) this.line.style.left = `${left}px`;
  }

  swatch(key) {
    const n = this.keys.findIndex((one) => one.key === key);
    return this.keys[n].dash ? this.view.look.faint : this.color(n);
  }

  restyle() {
    super.restyle();
    this.bars?.style.setProperty("--swatch", this.color(0));
  }
}

// The points in a range and one on either side.
function windowOf({ x, y }, [from, to]) {
  const first = Math.max(0, lowerBound(x, from) - 1);
  const last = Math.min(x.length, lowerBound(x, to) + 1);
  return { x: x.slice(first, last), y: y.slice(first, last) };
}

function lowerBound(x, value) {
  let [low, high] = [0, x.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (x[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

function valueAt({ x, y }, at) {
  const after = lowerBound(x, at);
  const nearest = after > 0 && (after === x.length || at - x[after - 1] < x[after] - at) ? after - 1 : after;
  return nearest < x.length && Math.abs(x[nearest] - at) < NEAR_MS ? y[nearest] : null;
}

// Each reason once, after the titles of everything that it keeps from being read.
function reasonLines(reasons) {
  const titles = new Map();
  for (const [title, reason] of reasons) titles.set(reason, (titles.get(reason) ?? new Set()).add(title));
  return [...titles].map(([reason, named]) => `${[...named].join(", ")}: ${capital(reason)}`);
}

const lastOf = (trace) => trace?.y.findLast((v) => v !== null) ?? null;

// The newest reading, where it is recent: a GPU that was lost a minute ago does not draw 500 W now.
function nowOf(trace, since) {
  const n = trace ? trace.y.findLastIndex((v) => v !== null) : -1;
  return n >= 0 && trace.x[n] >= since ? trace.y[n] : null;
}

// --- a GPU, or everything else of the machine ----------------------------------------------------------------------------------

class Group {
  constructor(view, title, charts, prefix, open) {
    Object.assign(this, { view, prefix, open });
    this.node = element("section", "mon-group", `group-${prefix ? prefix.slice(0, -1) : "system"}`);
    const id = prefix ? prefix.slice(0, -1) : "system";
    this.heading = prefix ? textButton("mon-heading", "", "", () => this.toggle()) : element("div", "mon-heading");
    const how = "Measured: the newest readings. The titles of the charts say how.";
    if (prefix) this.summary = element("span", "mon-summary", `summary-${id}`, { title: how });
    this.heading.append(withText("span", "mon-name", title), ...(this.summary ? [this.summary] : []));
    this.grid = element("div", "iso-grid");
    this.cards = charts.map((chart) => new MetricCard(view, chart, prefix));
    this.absent = element("section", "iso-card mon-absent", `missing-${id}`);
    this.grid.append(...this.cards.map((card) => card.node), this.absent);
    if (prefix) this.grid.append((this.holders = element("section", "iso-card", `processes-${id}`)));
    this.rest = element("div", "iso-words mon-rest", `rest-${id}`);
    this.node.append(this.heading, this.rest, this.grid);
    this.show(open);
  }

  toggle() {
    this.show(!this.open);
    this.view.paint();
  }

  show(open) {
    this.open = open;
    this.grid.hidden = this.rest.hidden = !open;
    if (this.prefix) this.heading.setAttribute("aria-expanded", String(open));
  }

  async update(Plotly, range) {
    this.summarize();
    if (!this.open) return;
    this.showRest(range);
    for (const card of this.cards) await card.update(Plotly, range);
    const lines = reasonLines(
      this.cards.filter((card) => !card.present).flatMap((card) => card.reasons().map(([, reason]) => [card.chart.title, reason])),
    );
    this.absent.hidden = !lines.length;
    refill(this.absent, lines, () => [titled("Not available here"), ...lines.map(words)]);
    this.showHolders();
  }

  // Why a GPU was not read for a while, or cannot be read at all: once for the GPU, not on each of its charts.
  showRest(range) {
    if (!this.prefix) return;
    const { about, missing } = this.view;
    const mine = about.columns.filter((column) => column.startsWith(this.prefix));
    const reasons = new Set(mine.map((column) => missing[column]));
    const lost = mine.length && reasons.size === 1 ? [...reasons][0] : undefined;
    const rests = this.view.restsIn(range);
    const times = rests.map(([from, to]) => `${clock(Math.max(from, range[0]))} – ${clock(Math.min(to, range[1]))}`);
    const lines = rests.length ? [`${times.join(", ")}: ${about.resting}`] : [];
    if (lost && lost !== about.resting) lines.push(`Nothing of this GPU can be read now. ${capital(lost)}`);
    for (const card of this.cards) card.saidAbove = lost;
    this.rest.hidden = !lines.length;
    setText(this.rest, lines.join(" "));
  }

  summarize() {
    if (!this.summary) return;
    const now = (key) => nowOf(this.view.traces[this.prefix + key], this.view.freshFrom);
    const parts = [[now("utilization_percent"), "%"], [now("power_w"), "W"], [now("temperature_c"), "°C"]];
    const used = now("memory_used_bytes");
    const known = parts.filter(([value]) => value !== null).map(([value, unit]) => `${figure(value, unit)} ${unit}`);
    if (used !== null) known.splice(1, 0, `${threeDigits(used / 2 ** 30)} GiB`);
    setText(this.summary, known.join(" · "));
  }

  // The processes that hold the GPU's memory: our runs by name, others only with their memory.
  showHolders() {
    if (!this.holders) return;
    const index = Number(this.prefix.slice(3, -1));
    const { processes, missing, runs } = this.view;
    const lines = processes.filter(({ gpu }) => gpu === index).map(({ memory_bytes: bytes, run_id: id, is_known: known }) => {
      const memory = bytes === null ? "unknown memory" : `${threeDigits(bytes / 2 ** 30)} GiB`;
      const run = runs.find((one) => one.run_id === id);
      const line = words(id === null ? `${known === false ? "a process" : "another process"} · ${memory}` : id ? "" : `Isoflop · ${memory}`);
      if (id) line.append(runLink(id, run?.words ?? `run ${id}`), ` · ${memory}`);
      return line;
    });
    const why = missing[`${this.prefix}processes`];
    if (why || !lines.length) lines.push(words(why ? capital(why) : "No process holds memory."));
    refill(this.holders, lines.map((line) => line.textContent), () => [titled("Processes"), ...lines]);
  }
}

const titled = (text) => withText("div", "iso-title", text);
const words = (text) => withText("div", "iso-words", text);

function runLink(id, text) {
  return withText("a", "mon-link", text, "", { href: new URL(`train?run=${encodeURIComponent(id)}`, ROOT).href, title: text });
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
    this.interval.title = data.may_set_interval ? "Holds for everybody who watches this machine" : "Only an admin can change this";
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

  asks() {
    return !this.paused;
  }

  async news() {
    const { found, answer } = await this.fetch("api/hardware", { after: this.cursor });
    if (!found) throw new Error("The server has no readings");
    this.take(answer);
  }

  settled() {
    this.showTrouble();
  }

  rest() {
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
      const keep = lowerBound(held.x, added[0]); // a clock that was set back comes by a second time
      const gap = added[0] - held.x[keep - 1] > Math.max(GAP_MS, 3000 * this.answer.interval_s);
      held.x.splice(keep, Infinity, ...(gap ? [added[0] - 1] : []), ...added);
      held.y.splice(keep, Infinity, ...(gap ? [null] : []), ...values);
    }
    for (const [name, held] of Object.entries(this.traces)) {
      if (!y[name]) held.x.push(added[0]), held.y.push(null); // it cannot be read any more: its line ends here
      const old = lowerBound(held.x, added.at(-1) - KEPT_MS);
      if (old > 200) held.x.splice(0, old), held.y.splice(0, old);
    }
  }

  // The cards of the columns there are; made again when another GPU came.
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

  // Readings from then on are of now.
  get freshFrom() {
    return this.newest === undefined ? Infinity : toX(this.newest) - Math.max(GAP_MS, 3000 * this.answer.interval_s);
  }

  get now() {
    return this.answer.now + (this.paused ? 0 : (performance.now() - this.receivedAt) / 1000);
  }

  isReady() {
    return Boolean(this.about);
  }

  // A zoom may come in the middle of a redraw: then it is drawn once more.
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

  // The runs of the time shown: each a bar on that time, after its name.
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
    if (inside.length > MOST_RUNS) rows.push(words(`and ${inside.length - MOST_RUNS} earlier in this time`));
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

  // The times in which GPUs were not read: no line is drawn through them.
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
    const words = bits && !this.missing[key] ? [by(bits) ? `Held back by ${by(bits)}.` : "Idle."] : [];
    const seen = this.traces[key] ? windowOf(this.traces[key], range).y.filter((b) => this.isThrottled(b)).reduce((all, b) => all | b, 0) : 0;
    if (seen && !this.isThrottled(bits)) words.push(`Orange: held back by ${by(seen)}.`);
    return words;
  }

  // From the counter's first and last reading in sight; nothing where it was reset in between.
  energyWords(key, [from, to]) {
    const trace = this.traces[key];
    if (!trace) return [];
    const rows = trace.x.map((x, n) => [x, trace.y[n]]).filter(([x, y]) => y !== null && x >= from && x <= to);
    if (rows.length < 2 || rows.some(([, y], n) => n && y < rows[n - 1][1])) return [];
    const joules = rows.at(-1)[1] - rows[0][1];
    const [factor, unit] = joules >= 1e3 ? displayUnit("J", joules) : [1, "J"];
    return [`${threeDigits(joules * factor)} ${unit} in ${duration((rows.at(-1)[0] - rows[0][0]) / 1000)} by the energy counter (measured).`];
  }

  pause() {
    this.paused = !this.paused;
    setText(this.pauseButton, this.paused ? "Resume" : "Pause");
    this.pauseButton.setAttribute("aria-pressed", String(this.paused));
    this.showFacts();
    if (!this.paused) this.poll();
  }

  // The pointer is at this time in one chart: the others show theirs.
  pointAt(x) {
    if (this.pointer === x) return;
    this.pointer = x;
    cancelAnimationFrame(this.pointing);
    this.pointing = requestAnimationFrame(() => {
      const range = this.range();
      for (const { open, cards } of this.groups) {
        for (const card of open ? cards : []) {
          if (!card.present) continue;
          card.say(card.series(range), range);
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
    if (why) this.say(this.newest === undefined ? why : `No new readings for ${duration(Math.max(0, this.now - this.newest))}. ${why}`);
    else if (!Object.keys(this.traces).length) this.say("Waiting for the first readings.");
    else this.notice.hidden = true;
  }
}

function intervalOption(seconds) {
  return withText("option", "", `${seconds} s`, "", { value: seconds });
}
