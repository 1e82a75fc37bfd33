// What the live views share: loading files, numbers as text, a view that polls, ranges and ticks, the theme's colours. The
// card that holds a chart is in card.js.

export const ROOT = new URL("..", import.meta.url); // this file is <root>/assets/common.js, whatever page is shown
const VERSION = new URL(import.meta.url).searchParams.get("v") ?? "";

let plotly;
export function loadPlotly(version) {
  plotly ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = new URL(`assets/plotly.min.js?v=${encodeURIComponent(version)}`, ROOT).href;
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => {
      script.remove();
      plotly = undefined; // the next update tries again
      reject(new Error("plotly.min.js did not load"));
    };
    document.head.append(script);
  });
  return plotly;
}

const stylesheets = new Map();
export function loadStylesheet(name) {
  if (!stylesheets.has(name)) {
    const loaded = new Promise((resolve) => {
      const link = document.createElement("link");
      link.rel = "stylesheet";
      link.href = new URL(`assets/${name}?v=${encodeURIComponent(VERSION)}`, ROOT).href;
      link.onload = link.onerror = resolve;
      document.head.append(link);
    });
    stylesheets.set(name, loaded);
  }
  return stylesheets.get(name);
}

// --- numbers as text (as in engine/common/units.py) -------------------------------------------------------------------

export const whole = (value) => Math.round(value).toLocaleString("en-US");
export const threeDigits = (value) => value.toFixed(Math.abs(value) >= 99.95 || value === 0 ? 0 : Math.abs(value) >= 9.995 ? 1 : 2);

export function count(value) {
  if (Math.abs(value) < 10_000) return value < 100 ? String(+value.toFixed(1)) : whole(value);
  const power = Math.min(3, Math.floor(Math.log10(value * 1.0005) / 3));
  return `${threeDigits(value / 1000 ** power)} ${["", "k", "M", "G"][power]}`;
}

export function lossText(value) {
  if (value === 0 || (Math.abs(value) >= 1e-3 && Math.abs(value) < 1e4)) return value.toFixed(Math.abs(value) < 10 ? 4 : 2);
  return value.toExponential(2);
}

export function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 59.5) return `${Math.round(seconds)} s`;
  const all = Math.round(seconds);
  if (all < 3600) return `${Math.floor(all / 60)} min ${String(all % 60).padStart(2, "0")} s`;
  return `${Math.floor(all / 3600)} h ${String(Math.floor((all % 3600) / 60)).padStart(2, "0")} min`;
}

export const capital = (text) => text && text[0].toUpperCase() + text.slice(1);

// Plotly reads names and hover texts as a kind of HTML: a user's text must stay text.
export const literal = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

// "Downloading mnist… 12 of 47 MB", or how long the run has been preparing.
export function preparingText({ text, done, total }, elapsed) {
  if (done === null) return `${text}… ${duration(elapsed)}`;
  const megabytes = (bytes) => (bytes / 1e6).toFixed((total ?? bytes) < 10e6 ? 1 : 0);
  return `${text}… ${megabytes(done)}${total === null ? "" : ` of ${megabytes(total)}`} MB`;
}

// What a run prepares, how long it took, or about how long it will still take.
export function remainingText({ preparing, over, elapsed_s: elapsed, left_s: left, doing }) {
  if (preparing) return preparingText(preparing, elapsed);
  if (over) return elapsed ? `after ${duration(elapsed)}` : "";
  if (left === null) return doing ?? "";
  return `about ${left < 59.5 ? `${Math.max(1, Math.round(left))} s` : duration(left)} left`;
}

// --- parts -------------------------------------------------------------------------------------------------------

export function element(tag, className = "", testid = "", attributes = {}) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (testid) node.dataset.testid = testid;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// An element with a text in it.
export function withText(tag, className, text, testid, attributes) {
  const node = element(tag, className, testid, attributes);
  node.textContent = text;
  return node;
}

export function textButton(className, text, testid, act, attributes) {
  const button = withText("button", className, text, testid, { type: "button", ...attributes });
  button.onclick = act;
  return button;
}

// A button that shows or hides one of several lines; `hidden` holds the keys of the hidden ones.
export function toggleButton(className, testid, hidden, key, act) {
  const button = textButton(className, "", testid, () => {
    const shown = hidden.delete(key);
    if (!shown) hidden.add(key);
    button.setAttribute("aria-pressed", String(shown));
    act();
  }, { title: "Show or hide", "aria-pressed": "true" });
  return button;
}

export function progressBar(label, testid) {
  const node = element("div", "iso-progress", testid, { role: "progressbar", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100 });
  node.append(document.createElement("div"));
  return node;
}

export function showProgress(node, share) {
  node.firstChild.style.width = `${100 * share}%`;
  node.setAttribute("aria-valuenow", String(Math.round(100 * share)));
}

const filled = new WeakMap();

// Makes the children of a node again when `state`, the data that they show, has changed.
export function refill(node, state, make) {
  const text = JSON.stringify(state);
  if (filled.get(node) === text) return;
  filled.set(node, text);
  node.replaceChildren(...make());
}

// A row of a table, with a cell for each text.
export function tableRow(tag, texts) {
  const row = document.createElement("tr");
  row.append(...texts.map((text) => withText(tag, "", text)));
  return row;
}

// --- a view that polls -------------------------------------------------------------------------------------------

const TIMEOUT_MS = 15_000;
const VIEWS = new WeakMap();

// Streamlit calls a component's function again on each rerun of the page and each change of theme, with the same element.
// The existing view stays if it `fits`. The clean-up of an earlier call must not end the view, so the owner marks the
// newest call.
export function keep(parent, fits, make, use) {
  let view = VIEWS.get(parent);
  if (view && !fits(view)) {
    view.end();
    view = undefined;
  }
  if (!view) {
    view = make();
    VIEWS.set(parent, view);
    view.start();
  }
  const owner = (view.owner = Symbol("mount"));
  use(view);
  return () => {
    if (view.owner !== owner) return;
    view.end();
    VIEWS.delete(parent);
  };
}

// The base of a live view. A subclass builds an `area` that holds its `charts()`, and defines:
// - `needsPoll()`: whether to poll again; `fetchUpdate()` polls; `afterPoll()` runs after a poll that worked; `pollDelay()`:
//   ms until the next poll;
// - `isReady()`: whether there is anything to show; `showWords()` shows what needs no Plotly and returns whether there are
//   charts to draw; `redraw()` draws them; `drawn()` runs after that;
// - `showFacts()`: the line of facts, also between polls.
export class PollingView {
  constructor(parent, data, { id, className, prefix = `${id}-` }) {
    Object.assign(this, { parent, prefix, plotlyVersion: data.plotly_version, wasAlive: data.alive, answer: null, receivedAt: 0, cursor: "" });
    Object.assign(this, { failures: 0, zoom: null, dragging: false, ended: false });
    this.debug = { polls: 0, updates: 0, mounts: 0, loads: 0, bytes: 0, view: this };
    this.node = element("div", `iso-live ${className}`, id);
    this.node.style.visibility = "hidden"; // until the stylesheets are there
    this.node.isoflop = this.debug;
    this.notice = element("p", "iso-notice", `${prefix}notice`, { role: "alert", hidden: "" });
    this.facts = element("span", "iso-facts", `${prefix}facts`);
    parent.append(this.node);
  }

  // --- parts

  // The line with the state: a badge, a progress bar, words on the time left, and the facts.
  stateLine(label) {
    this.badge = element("span", "iso-badge", `${this.prefix}status`, { role: "status" });
    this.progress = progressBar(label, `${this.prefix}progress`);
    this.progress.hidden = true;
    this.left = element("span", "iso-left", `${this.prefix}left`, { hidden: "" });
    const head = element("div", "iso-head");
    head.append(this.badge, this.progress, this.left, this.facts);
    return head;
  }

  // `share` is null where the progress is not known.
  showState(status, share, words) {
    this.badge.dataset.status = status;
    setText(this.badge, capital(status));
    this.progress.hidden = share === null;
    showProgress(this.progress, share ?? 0);
    setText(this.left, words);
    this.left.hidden = !words;
    this.showFacts();
  }

  resetZoom(text) {
    this.resetButton = textButton("iso-reset", text, `${this.prefix}reset-zoom`, () => this.zoomTo(null), { hidden: "" });
    return this.resetButton;
  }

  // How long ago the newest data came; `age` is how old it was when the answer arrived.
  lastUpdate(age = 0) {
    return `last update ${duration(age + (performance.now() - this.receivedAt) / 1000)} ago`;
  }

  showNotice(text) {
    setText(this.notice, text);
    this.notice.hidden = false;
  }

  // --- life

  begin(stylesheets, factsMs) {
    Promise.all(stylesheets.map(loadStylesheet)).then(() => (this.node.style.visibility = ""));
    this.look = readLook(this.node);
    this.resizer = new ResizeObserver(() => {
      cancelAnimationFrame(this.resizing);
      this.resizing = requestAnimationFrame(() => this.resize());
    });
    this.resizer.observe(this.area);
    this.abort = new AbortController();
    const { signal } = this.abort;
    document.addEventListener("visibilitychange", () => document.hidden || this.poll(), { signal });
    window.addEventListener("beforeprint", () => this.resize(), { signal });
    // A redraw in the middle of a drag would remove the zoom box.
    this.area.addEventListener("pointerdown", () => (this.dragging = true), { signal });
    for (const type of ["pointerup", "pointercancel"]) {
      window.addEventListener(type, () => this.dragging && setTimeout(() => ((this.dragging = false), this.paint()), 0), { signal });
    }
    this.ticker = setInterval(() => this.showFacts(), factsMs);
  }

  // Removes everything: Streamlit has left the page.
  end() {
    this.ended = true;
    clearTimeout(this.timer);
    clearInterval(this.ticker);
    cancelAnimationFrame(this.resizing);
    this.resizer.disconnect();
    this.abort.abort();
    for (const { mounted, plot } of this.charts()) if (mounted) window.Plotly.purge(plot);
    this.node.remove();
  }

  // Reads the theme again: it may have changed when the page was drawn again.
  restyle() {
    this.look = readLook(this.node);
    for (const card of this.charts()) card.restyle();
    this.paint().catch(() => {}); // Plotly may not be loaded yet; the poll says so
  }

  charts() {
    return this.cards;
  }

  resize() {
    for (const { mounted, plot } of this.charts()) if (mounted && plot.offsetParent) window.Plotly.Plots.resize(plot);
  }

  zoomTo(range) {
    this.zoom = range;
    this.resetButton.hidden = !range;
    this.paint();
  }

  // --- picture

  isReady() {
    return Boolean(this.answer && this.look);
  }

  async paint() {
    if (this.ended || !this.isReady()) return;
    if (!this.showWords()) return;
    const Plotly = await loadPlotly(this.plotlyVersion);
    if (this.ended || this.dragging) return;
    await this.redraw(Plotly);
    if (this.ended) return;
    this.drawn();
    this.debug.updates += 1;
    if (!document.hidden) await new Promise(requestAnimationFrame);
    if (!this.ended) this.reportEnd();
  }

  async redraw(Plotly) {
    const range = this.range();
    for (const card of this.charts()) {
      await card.update(Plotly, range);
      if (this.ended) return;
    }
  }

  // The horizontal axis that the charts share.
  range() {
    return null;
  }

  drawn() {}

  // Tells the page once that the run it showed has ended.
  reportEnd() {
    if (!this.over || !this.wasAlive) return;
    this.wasAlive = false;
    this.onEnd(this.answer.status);
  }

  // --- data

  afterPoll() {
    this.notice.hidden = !this.gone;
    if (this.gone) this.showNotice(this.gone);
  }

  // One poll at a time; the next is set when this one is drawn, so that a slow browser asks less often.
  async poll() {
    clearTimeout(this.timer);
    if (this.polling || this.ended || document.hidden || !this.needsPoll()) return;
    this.polling = true;
    let delay;
    try {
      const begun = performance.now();
      await this.fetchUpdate();
      const took = performance.now() - begun;
      await this.paint();
      this.failures = 0;
      this.afterPoll();
      delay = Math.max(this.pollDelay(), took);
    } catch {
      if (this.ended) return;
      this.failures += 1;
      delay = Math.min(10_000, 500 * 2 ** this.failures);
      this.showNotice(`Connection lost, retrying in ${duration(delay / 1000)}.`);
    } finally {
      this.polling = false;
    }
    if (!this.ended && this.needsPoll()) this.timer = setTimeout(() => this.poll(), delay);
  }

  // The body of an answer, and whether the status was not 404. Throws on a time-out and when the view has ended.
  async fetch(path, parameters) {
    const url = new URL(path, ROOT);
    for (const [name, value] of Object.entries(parameters)) if (value) url.searchParams.set(name, value);
    const signal = AbortSignal.any([this.abort.signal, AbortSignal.timeout(TIMEOUT_MS)]);
    const response = await fetch(url, { signal, cache: "no-store", credentials: "same-origin" });
    const text = await response.text();
    this.debug.polls += 1;
    this.debug.bytes = text.length;
    if (!response.ok && response.status !== 404) throw new Error(`The server answered ${response.status}`);
    return { found: response.ok, answer: JSON.parse(text) };
  }
}

// --- lines -------------------------------------------------------------------------------------------------------

// An exponential moving average over steps, drawn through means of groups of steps: `n` steps at once decay as n
// single ones. Divided by its own total weight, so that the first points are not pulled to zero; a group without a
// finite loss is a gap and leaves the average as it was.
export function smooth({ x, y, n }, halfLife) {
  let value = 0;
  let weight = 0;
  const smoothed = y.map((mean, i) => {
    if (mean === null) return null;
    const kept = 0.5 ** (n[i] / halfLife);
    value = kept * value + (1 - kept) * mean;
    weight = kept * weight + (1 - kept);
    return value / weight;
  });
  return { x, y: smoothed };
}

// --- ranges and ticks ---------------------------------------------------------------------------------------------

export function extremes(series, [from, to]) {
  let low = Infinity;
  let high = -Infinity;
  let positive = Infinity;
  for (const { x, y } of series) {
    for (let i = 0; i < x.length; i++) {
      if (y[i] === null || x[i] < from || x[i] > to) continue;
      low = Math.min(low, y[i]);
      high = Math.max(high, y[i]);
      if (y[i] > 0) positive = Math.min(positive, y[i]);
    }
  }
  return { low, high, positive };
}

export function include(seen, y) {
  seen.low = Math.min(seen.low, y);
  seen.high = Math.max(seen.high, y);
  if (y > 0) seen.positive = Math.min(seen.positive, y);
}

// `fromZero`, `least` and `most` as in a row of engine/charts/facts.py.
export function yRange({ from_zero: fromZero, least, most }, { low, high, positive }, log) {
  if (low > high) return log ? [-1, 0] : [0, 1];
  if (log) {
    const [a, b] = [Math.log10(positive), Math.log10(Math.max(high, positive))];
    const room = Math.max(0.05, 0.06 * (b - a));
    return [a - room, b + room];
  }
  if (fromZero || low === high || (low >= 0 && low < 0.25 * high)) return [0, Math.max(least ?? 0, high, 1e-9) * 1.06];
  const room = Math.max(0.06 * (high - low), 1e-3 * Math.abs(high), 1e-9);
  const top = high + room;
  return [low - room, most ? Math.min(top, most + room / 2) : top];
}

// Ticks of a logarithmic axis over a range of exponents.
export const decades = ([from, to]) => (to - from > 1.5 ? Math.ceil((to - from) / 5) : "D2");

// The unit to show instead of the engine's base unit, by the largest visible value: [factor, unit].
export function displayUnit(unit, largest) {
  const steps = { bytes: [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]], "bytes/s": [[2 ** 30, "GiB/s"], [2 ** 20, "MiB/s"], [2 ** 10, "KiB/s"]], Hz: [[1e9, "GHz"], [1e6, "MHz"]], J: [[1e6, "MJ"], [1e3, "kJ"]] }[unit];
  const found = steps?.find(([size]) => largest >= size) ?? steps?.at(-1);
  return found ? [1 / found[0], found[1]] : [1, unit];
}

const TIME_STEPS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800];

export function timeTicks([from, to]) {
  const step = TIME_STEPS.find((s) => (to - from) / s <= 5) ?? 86_400;
  const digits = step < 1 ? Math.ceil(-Math.log10(step) - 1e-9) : 0;
  const label = (t) => {
    if (to < 180 || step < 1) return `${t.toFixed(digits)} s`;
    const two = (v) => String(v).padStart(2, "0");
    const [h, m, s] = [Math.floor(t / 3600), Math.floor((t % 3600) / 60), Math.round(t % 60)];
    return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
  };
  const tickvals = [];
  for (let k = Math.ceil(from / step - 1e-9); k * step <= to + 1e-9; k++) tickvals.push(k * step);
  return { tickvals, ticktext: tickvals.map(label) };
}

// The right end of the shared time axis moves in steps of about a twelfth. If it moved with every update, it would distract,
// and charts without new points would be drawn again.
export function roundUp(seconds) {
  const step = TIME_STEPS.find((s) => seconds / s <= 12) ?? 28_800;
  return Math.max(1, Math.ceil(seconds / step + 1e-9) * step);
}

// --- theme -------------------------------------------------------------------------------------------------------

function readLook(node) {
  const style = getComputedStyle(node);
  const get = (name, otherwise) => style.getPropertyValue(`--st-${name}`).trim() || otherwise;
  const text = get("text-color", "#1b1f2a");
  const series = get("chart-categorical-colors", "#4f6bed,#d9822b").split(",").map((c) => c.trim());
  const look = {
    text,
    series,
    background: get("background-color", "#ffffff"),
    border: get("border-color", "#e3e6ec"),
    bad: get("red-color", "#d3364a"),
    font: get("font", "sans-serif"),
    faint: fade(text, 0.62),
    grid: fade(text, 0.08),
    touch: matchMedia("(hover: none) and (pointer: coarse)").matches,
  };
  return { ...look, signature: JSON.stringify(look) };
}

// A hex colour with an alpha; anything else stays as it is.
export function fade(color, alpha) {
  const hex = /^#([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})$/i.exec(color);
  return hex ? `rgba(${hex.slice(1).map((h) => parseInt(h, 16)).join(",")},${alpha})` : color;
}
