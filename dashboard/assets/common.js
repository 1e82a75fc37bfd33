// What the live views share: loading, numbers in words, ranges and ticks, and the look of the page's theme.

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

// --- numbers in words (as in engine/units.py) -------------------------------------------------------------------

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
  if (all < 3600) return `${Math.floor(all / 60)}:${String(all % 60).padStart(2, "0")} min`;
  return `${Math.floor(all / 3600)} h ${String(Math.floor((all % 3600) / 60)).padStart(2, "0")} min`;
}

// "Downloading mnist… 12 of 47 MB", or how long it takes already.
export function preparingText({ text, done, total }, elapsed) {
  if (done === null) return `${text}… ${duration(elapsed)}`;
  const megabytes = (bytes) => (bytes / 1e6).toFixed((total ?? bytes) < 10e6 ? 1 : 0);
  return `${text}… ${megabytes(done)}${total === null ? "" : ` of ${megabytes(total)}`} MB`;
}

// --- parts -------------------------------------------------------------------------------------------------------

export function element(tag, className, testid) {
  const node = document.createElement(tag);
  node.className = className;
  if (testid) node.dataset.testid = testid;
  return node;
}

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// A title that says how its figures were had: to who points at it, and below to who clicks.
export function explain(title, how, words) {
  setText(how, words.join(" "));
  title.title = words.join("\n");
}

export function explained(text, id) {
  const how = element("div", "iso-words iso-how", `how-${id}`);
  how.hidden = true;
  const title = element("button", "iso-title iso-asks", `title-${id}`);
  title.type = "button";
  title.textContent = text;
  title.setAttribute("aria-expanded", "false");
  title.onclick = () => {
    how.hidden = !how.hidden;
    title.setAttribute("aria-expanded", String(!how.hidden));
  };
  return [title, how];
}

// --- a view that polls -------------------------------------------------------------------------------------------

const TIMEOUT_MS = 15_000;
const VIEWS = new WeakMap();

// What Streamlit calls again on each rerun of the page and each change of theme, with the same element: the view that is
// there goes on where it `fits`. The clean-up of a call that has been followed by another must not end it, hence the owner.
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

// A view has a `node`, a `notice`, an `area` that holds its charts, `charts()`, `paint()`, `resize()` and `showFacts()`;
// `asks()` says whether it wants news, `news()` fetches them, `settled()` follows, and `rest()` is how long it then waits.
export class PollingView {
  constructor() {
    Object.assign(this, { failures: 0, zoom: null, dragging: false, ended: false });
    this.debug = { polls: 0, updates: 0, mounts: 0, loads: 0, bytes: 0, view: this };
  }

  begin(stylesheets, factsMs) {
    Promise.all(stylesheets.map(loadStylesheet)).then(() => (this.node.style.visibility = ""));
    this.resizer = new ResizeObserver(() => {
      cancelAnimationFrame(this.resizing);
      this.resizing = requestAnimationFrame(() => this.resize());
    });
    this.resizer.observe(this.area);
    this.abort = new AbortController();
    const { signal } = this.abort;
    document.addEventListener("visibilitychange", () => document.hidden || this.poll(), { signal });
    window.addEventListener("beforeprint", () => this.resize(), { signal });
    // A redraw in the middle of a drag would tear the zoom box away.
    this.area.addEventListener("pointerdown", () => (this.dragging = true), { signal });
    for (const type of ["pointerup", "pointercancel"]) {
      window.addEventListener(type, () => this.dragging && setTimeout(() => ((this.dragging = false), this.paint()), 0), { signal });
    }
    this.ticker = setInterval(() => this.showFacts(), factsMs);
  }

  // Takes everything down: Streamlit has left the page.
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

  // One poll at a time; the next is set when this one is painted, so a slow browser asks less often.
  async poll() {
    clearTimeout(this.timer);
    if (this.polling || this.ended || document.hidden || !this.asks()) return;
    this.polling = true;
    let delay;
    try {
      const begun = performance.now();
      await this.news();
      const took = performance.now() - begun;
      await this.paint();
      this.failures = 0;
      this.settled();
      delay = Math.max(this.rest(), took);
    } catch {
      if (this.ended) return;
      this.failures += 1;
      delay = Math.min(10_000, 500 * 2 ** this.failures);
      this.say(`Connection lost, retrying in ${duration(delay / 1000)}.`);
    } finally {
      this.polling = false;
    }
    if (!this.ended && this.asks()) this.timer = setTimeout(() => this.poll(), delay);
  }

  // Status and body of an answer; raises when there is none in time, or the view has ended.
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

  say(text) {
    setText(this.notice, text);
    this.notice.hidden = false;
  }
}

// Draws a card's figure: mounted once, then only redrawn, so that nothing of what the reader did to it is lost. `number`
// turns what Plotly tells of the horizontal axis into the view's own numbers, `point` hears where the pointer is.
export async function draw(Plotly, card, [traces, layout], { number = Number, point = () => {}, hover = true } = {}) {
  if (card.mounted) await Plotly.react(card.plot, traces, layout);
  else await mountPlot(Plotly, card, [traces, layout], number, point);
  if (hover && card.hoverX !== undefined) Plotly.Fx.hover(card.plot, { xval: card.hoverX }, "xy"); // a redraw takes it away
}

async function mountPlot(Plotly, card, figure, number, point) {
  const { plot, view } = card;
  card.mounted = true;
  view.debug.mounts += 1;
  delete plot.dataset.empty;
  await Plotly.newPlot(plot, ...figure, {
    displayModeBar: false,
    doubleClick: false, // resets ours, below
    scrollZoom: false,
    showTips: false,
  });
  plot.on("plotly_relayout", (change) => {
    const [from, to] = [change["xaxis.range[0]"], change["xaxis.range[1]"]];
    if (from !== undefined && to !== undefined) view.zoomTo([number(from), number(to)]);
  });
  plot.on("plotly_doubleclick", () => view.zoomTo(null));
  plot.on("plotly_hover", (event) => point((card.hoverX = event.xvals && number(event.xvals[0]))));
  plot.on("plotly_unhover", () => point((card.hoverX = undefined)));
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

export function yRange(chart, { low, high, positive }, log) {
  if (low > high) return log ? [-1, 0] : [0, 1];
  if (log) {
    const [a, b] = [Math.log10(positive), Math.log10(Math.max(high, positive))];
    const room = Math.max(0.05, 0.06 * (b - a));
    return [a - room, b + room];
  }
  if (chart.fromZero || low === high || (low >= 0 && low < 0.25 * high)) return [0, Math.max(chart.least ?? 0, high, 1e-9) * 1.06];
  const room = Math.max(0.06 * (high - low), 1e-3 * Math.abs(high), 1e-9);
  const top = high + room;
  return [low - room, chart.most ? Math.min(top, chart.most + room / 2) : top];
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

// The right end of the shared time axis moves in steps of about a twelfth: an axis that crawls with every update is
// restless, and a chart without new points would have to be drawn again for nothing.
export function roundUp(seconds) {
  const step = TIME_STEPS.find((s) => seconds / s <= 12) ?? 28_800;
  return Math.max(1, Math.ceil(seconds / step + 1e-9) * step);
}

// --- theme -------------------------------------------------------------------------------------------------------

export function readLook(node) {
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
