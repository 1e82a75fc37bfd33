// The data of a race: the points of each run, and the lines and bands computed from them. No page elements.

const VERSION = new URL(import.meta.url).searchParams.get("v") ?? "";
const { smooth } = await import(new URL(`common.js?v=${VERSION}`, import.meta.url).href); // a static import would lose the version

const NOISY = ["loss", "grad_norm"];
const MOST_ON_GRID = 600;

// The possible horizontal axes: a column of the points, and what it is multiplied with, from the run's `about` and the view.
// `scale` gives null while that is not known yet, undefined where it never will be.
export const AXES = [
  { id: "steps", label: "Steps", title: "Steps", column: "step", scale: () => 1, hover: ",.0f", before: "step " },
  { id: "samples", label: "Samples", title: "Samples seen", column: "samples", scale: () => 1, hover: ",.0f", after: " samples" },
  { id: "epochs", label: "Epochs", title: "Epochs", column: "samples", scale: ({ train_examples: n }) => (n ? 1 / n : null), hover: ",.3~f", before: "epoch " },
  { id: "seconds", label: "Seconds", title: "Training time (s)", column: "train_s", scale: () => 1, hover: ".3~f", after: " s of training" },
  { id: "flops", label: "FLOPs", title: "Training FLOPs", column: "samples", scale: ({ flops_per_example: k }) => k ?? null, hover: ".3s", after: "FLOP" },
  { id: "money", label: "Money", title: "Cost of the training time", column: "train_s", scale: (_, { price }) => (price === null ? undefined : price / 3600), hover: ".3~g", before: "cost " },
  { id: "joules", label: "Joules", title: "Energy (J)", column: "joules", scale: () => 1, hover: ".4~s", after: "J" },
];

// A target as the server reads it; empty for none.
export const targetText = (target) => (target ? `${target.metric}=${target.value}` : "");

// One run: the points that the polls have brought so far.
export class Run {
  constructor(id, seed) {
    Object.assign(this, { id, seed, about: {}, answer: null, traces: {}, cursor: "", over: false, error: "", version: 0 });
    this.reached = { target: "", at: null }; // a target as `targetText` writes it, and where the run reached it
    this.lines = new Map(); // computed from the traces; cleared when they change
  }

  // `target` is the target in the request that this answers.
  take(answer, most, target = "") {
    this.lines.clear();
    this.reached = { target, at: answer.reached ?? null };
    this.version += 1;
    if (answer.error !== undefined) {
      this.error = answer.error;
      this.over = true;
      return;
    }
    if (answer.reset) this.traces = {};
    if (answer.about) this.about = answer.about;
    for (const name of NOISY) {
      const every = answer.traces[name]; // without means every row was sent
      if (every) answer.traces[`${name}_mean`] ??= { ...every, marks: [], n: every.y.map(() => 1) };
    }
    for (const [name, added] of Object.entries(answer.traces)) {
      const held = (this.traces[name] ??= {});
      for (const [column, values] of Object.entries(added)) (held[column] ??= []).push(...values);
    }
    this.answer = answer;
    this.over = answer.over;
    const full = Object.values(this.traces).some(({ y }) => y.length > 1.4 * most + 60);
    this.cursor = full && !answer.over ? "" : answer.cursor; // an empty cursor asks for the whole run again, thinned
  }

  get status() {
    return this.error ? "gone" : (this.answer?.status ?? "queued");
  }

  get progress() {
    return this.over ? 1 : (this.answer?.progress ?? 0);
  }

  // x of a trace's points on an axis; null where the trace has no such column, or its scale is not known yet.
  x(trace, axis, view) {
    const scale = axis.scale(this.about, view);
    const column = trace[axis.column];
    if (!column || scale === null || scale === undefined) return null;
    return scale === 1 ? column : column.map((v) => v * scale);
  }

  // Whether a run that is over has points, but none of them has this axis: an imported table can lack times or samples.
  lacks(axis, view) {
    const traces = Object.values(this.traces);
    return this.over && traces.length > 0 && traces.every((trace) => !this.x(trace, axis, view));
  }

  // The points of a trace as they were sent: {x, y, step}, or null.
  raw(key, axis, view, factor = 1) {
    return this.cached(`raw ${key} ${axis.id} ${view.price} ${factor}`, () => {
      const trace = this.traces[key];
      const x = trace?.y.length ? this.x(trace, axis, view) : null;
      return x && { x, y: factor === 1 ? trace.y : trace.y.map((v) => (v === null ? null : v * factor)), step: trace.step };
    });
  }

  // The line of a noisy trace: as it was sent, or smoothed over about `share` of the run's steps.
  line(key, axis, view, share, factor = 1) {
    if (!NOISY.includes(key) || share === 0) return this.raw(key, axis, view, factor);
    return this.cached(`line ${key} ${axis.id} ${view.price} ${share}`, () => {
      const means = this.traces[`${key}_mean`];
      const x = means?.y.length ? this.x(means, axis, view) : null;
      return x && { ...smooth({ x, y: means.y, n: means.n }, this.halfLife(means, share)), step: means.step };
    });
  }

  // The half-life of the smoothing, in steps: a share of all steps of the run. If their number is unknown, it is a share of the
  // next power of two, so that the line does not change its shape with every update.
  halfLife({ step }, share) {
    if (this.about.few_rows) return 0.01; // a row of an imported table can be a whole epoch
    const done = step.at(-1) ?? 1;
    const measured = done / Math.max(1, this.traces.loss?.step.at(-1) ?? done);
    return Math.max(0.01, share * measured * (this.about.total_steps ?? 2 ** Math.ceil(Math.log2(Math.max(1, done)))));
  }

  // Where a trace became NaN or infinite: [{x, step, word}].
  marks(key, axis, view) {
    const found = this.traces[key]?.marks ?? [];
    const columns = { step: 0, samples: 1, train_s: 2 };
    const scale = axis.scale(this.about, view);
    if (!(axis.column in columns) || scale === null || scale === undefined) return [];
    const known = found.filter((mark) => mark[columns[axis.column]] !== null);
    return known.map((mark) => ({ x: mark[columns[axis.column]] * scale, step: mark[0], word: mark[3] }));
  }

  // Where the run reached a target: {x, step, between}. It is null if the run did not reach it, and undefined until the server answers. The
  // server computes it from all evaluations (engine/events/target.py): the points here can be thinned.
  crossing(target, axis, view) {
    if (this.error) return null;
    if (this.reached.target !== targetText(target)) return undefined;
    const { at } = this.reached;
    const x = at && this.x(Object.fromEntries(Object.entries(at).map(([name, value]) => [name, [value]])), axis, view);
    return x ? { x: x[0], step: Math.round(at.step), between: at.between } : null;
  }

  cached(name, make) {
    if (!this.lines.has(name)) this.lines.set(name, make());
    return this.lines.get(name);
  }
}

// Mean, smallest and largest value of several lines at every x of any of them. It reaches from the latest first point to the
// earliest last point, because outside it would be the mean of fewer lines.
export function meanOf(lines) {
  const from = Math.max(...lines.map(({ x }) => x[0]));
  const to = Math.min(...lines.map(({ x }) => x.at(-1)));
  const all = [...new Set(lines.flatMap(({ x }) => x.filter((v) => v >= from && v <= to)))].sort((a, b) => a - b);
  const every = Math.ceil(all.length / MOST_ON_GRID);
  const x = every > 1 ? all.filter((_, i) => i % every === 0 || i === all.length - 1) : all;
  const columns = lines.map((line) => interpolate(line, x));
  const y = [], low = [], high = [];
  for (let i = 0; i < x.length; i++) {
    const values = columns.map((column) => column[i]);
    const gap = values.includes(null);
    y.push(gap ? null : values.reduce((sum, v) => sum + v, 0) / values.length);
    low.push(gap ? null : Math.min(...values));
    high.push(gap ? null : Math.max(...values));
  }
  return { x, y, low, high };
}

// A line's value at ascending places within it; null beside a gap.
function interpolate({ x, y }, places) {
  let i = 0;
  return places.map((place) => {
    while (i < x.length - 2 && x[i + 1] < place) i += 1;
    if (x[i] === place || x.length === 1) return y[i];
    if (x[i + 1] === place) return y[i + 1];
    if (y[i] === null || y[i + 1] === null) return null;
    return y[i] + ((y[i + 1] - y[i]) * (place - x[i])) / (x[i + 1] - x[i]);
  });
}

// The outline of a band, one polygon for each stretch without a gap.
export function outline({ x, low, high }) {
  const outlined = { x: [], y: [] };
  for (let i = 0; i < x.length; i++) {
    if (low[i] === null) continue;
    let end = i;
    while (end + 1 < x.length && low[end + 1] !== null) end += 1;
    const there = Array.from({ length: end - i + 1 }, (_, k) => i + k);
    const back = there.toReversed();
    outlined.x.push(...there.map((k) => x[k]), ...back.map((k) => x[k]), null);
    outlined.y.push(...there.map((k) => high[k]), ...back.map((k) => low[k]), null);
    i = end;
  }
  return outlined;
}

// Several lines as one with gaps between them: one trace is cheaper to draw than several.
export function joined(lines) {
  return { x: lines.flatMap((l) => [...l.x, null]), y: lines.flatMap((l) => [...l.y, null]) };
}

// The part of a line after `x`, from the last point before it on.
export function tail({ x, y }, after) {
  const first = x.findIndex((v) => v > after);
  return first < 0 ? null : { x: x.slice(Math.max(0, first - 1)), y: y.slice(Math.max(0, first - 1)) };
}

// An accuracy's noise floor: how far one configuration moves from seed to seed by chance alone, about sqrt(err / 2n) for n test
// predictions (a calibrated classifier is right with probability p: E[p(1-p)] is half its error).
export function noiseFloor(accuracy, testPredictions) {
  return Math.sqrt(Math.max(0, 1 - accuracy) / (2 * testPredictions));
}

// The right end of an axis moves in steps, because an end that moves with every update distracts.
export function niceEnd(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value / 10));
  const step = [1, 2, 5, 10].find((k) => value / (k * power) <= 12) * power;
  return Math.ceil(value / step - 1e-9) * step;
}

export function median(values) {
  const sorted = values.toSorted((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

export const mean = (values) => (values.length ? values.reduce((sum, v) => sum + v, 0) / values.length : null);

const UNDER_WAY = ["stopping", "running", "starting"];
const BAD = ["failed", "gone", "interrupted", "cancelled"];

// The state of a lane (a configuration): that of a seed that is not over, otherwise the worst one; and how many seeds are over.
export function laneState(runs) {
  const statuses = runs.map((run) => run.status);
  const over = runs.filter((run) => run.over).length;
  const live = UNDER_WAY.find((status) => statuses.includes(status)) ?? (over < runs.length ? "queued" : null);
  if (live) return { status: live, text: over ? `${live} · ${over} of ${runs.length} done` : live };
  const bad = BAD.find((status) => statuses.includes(status));
  const status = bad ?? "finished";
  const same = statuses.filter((s) => s === status).length;
  return { status, text: same < runs.length ? `${status} ${same} of ${runs.length}` : status };
}
