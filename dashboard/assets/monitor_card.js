// A chart of the machine's readings: which charts there are, and the card that draws one of them.

const VERSION = new URL(import.meta.url).searchParams.get("v") ?? "";
const load = (name) => import(new URL(`${name}?v=${VERSION}`, import.meta.url).href); // a static import would lose the version
const { capital, displayUnit, element, extremes, fade, include, setText, threeDigits, whole, yRange } = await load("common.js");
const { Card } = await load("card.js");

const NEAR_MS = 15_000; // a value at most this far from the pointer counts as the value at the pointer
export const GAP_MS = 2_000; // the line is broken at gaps longer than this and than three intervals
const OFFSET_MS = -60_000 * new Date().getTimezoneOffset();
export const toX = (unix_s) => Math.round(unix_s * 1000) + OFFSET_MS;
const two = (value) => String(value).padStart(2, "0");
export const clock = (x) => { const at = new Date(x); return [at.getUTCHours(), at.getUTCMinutes(), at.getUTCSeconds()].map(two).join(":"); };

// `keys` are columns, those of a GPU without "gpuN."; the first one is the value in the header.
export const SYSTEM = [
  { id: "cpu", title: "CPU", keys: [["cpu.busy_percent", "all cores"], ["cpu.busiest_percent", "busiest core"]], cores: true, least: 100, most: 100 },
  { id: "own", title: "Isoflop's CPU", keys: [["own.cpu_percent", "supervisor and runs"]], note: "100 % is one core", least: 100 },
  { id: "memory", title: "Memory", keys: [["memory.used_bytes", "used"], ["own.memory_bytes", "Isoflop"], ["memory.swap_used_bytes", "swap"]], total: ["memory.used_bytes", "memory.available_bytes"] },
  { id: "pressure", title: "Pressure (PSI)", keys: [["pressure.cpu_percent", "CPU"], ["pressure.memory_percent", "memory"], ["pressure.io_percent", "disk"]], least: 10, most: 100 },
  { id: "load", title: "Load", keys: [["cpu.load_1min", "1 min average"]], least: 1 },
  { id: "disk", title: "Disk", keys: [["disk.read_bytes_per_s", "read"], ["disk.write_bytes_per_s", "written"]] },
  { id: "network", title: "Network", keys: [["network.received_bytes_per_s", "received"], ["network.sent_bytes_per_s", "sent"]] },
  { id: "frequency", title: "CPU frequency", keys: [["cpu.frequency_hz", "mean of the cores"]] },
  { id: "cpu-power", title: "CPU power", keys: [["cpu.power_w", "packages"]] },
];
export const GPU = [
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

// Plotly gives a place on a date axis as a number or as a text in UTC.
const toMs = (value) => (typeof value === "number" ? value : Date.parse(`${String(value).replace(" ", "T")}Z`));

export function figure(value, unit) {
  if (unit === "%") return String(Math.round(value));
  return unit === "MHz" || unit === "°C" ? whole(value) : threeDigits(value);
}

export class MetricCard extends Card {
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

  // Sets the titles and legends, once the server has described the columns.
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

  // Whether any column of this chart can be read. The reasons for the others are shown here or in the group's card.
  get present() {
    return this.keys.some(({ key }) => this.has(key));
  }

  reasons() {
    const { missing, about } = this.view;
    return this.keys
      .filter(({ key }) => missing[key] && missing[key] !== this.groupReason)
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
    this.showTexts(all, range);
    if (!this.seen) return; // it is drawn when it scrolls into view
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

  // The times when something limited the clocks.
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

  // The newest value or the one under the pointer, and the text below.
  showTexts(all, range) {
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

// --- values of a trace ----------------------------------------------------------------------------------------------

// The points in a range and one on either side.
export function windowOf({ x, y }, [from, to]) {
  const first = Math.max(0, lowerBound(x, from) - 1);
  const last = Math.min(x.length, lowerBound(x, to) + 1);
  return { x: x.slice(first, last), y: y.slice(first, last) };
}

export function lowerBound(x, value) {
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

// Each reason once, after the titles of all the values that are missing for it.
export function reasonLines(reasons) {
  const titles = new Map();
  for (const [title, reason] of reasons) titles.set(reason, (titles.get(reason) ?? new Set()).add(title));
  return [...titles].map(([reason, named]) => `${[...named].join(", ")}: ${capital(reason)}`);
}

const lastOf = (trace) => trace?.y.findLast((v) => v !== null) ?? null;

// The newest reading if it is recent, otherwise null: a GPU that was lost a minute ago does not draw 500 W now.
export function nowOf(trace, since) {
  const n = trace ? trace.y.findLastIndex((v) => v !== null) : -1;
  return n >= 0 && trace.x[n] >= since ? trace.y[n] : null;
}
