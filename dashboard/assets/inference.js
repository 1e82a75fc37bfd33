// The live view of an inference run: maps of throughput and latency over batch size and threads, curves of one against the
// other, and for one cell the distribution of its latencies and the hardware's readings at the same time.
//
// The maps are buttons in a grid that change in place. The browser may share the machine with the measurement, so the view
// polls once a second and draws only what has changed.

const VERSION = new URL(import.meta.url).searchParams.get("v") ?? "";
const load = (name) => import(new URL(`${name}?v=${VERSION}`, import.meta.url).href); // a static import would lose the version
const { PollingView, element, keep, refill, remainingText, setText, textButton, withText } = await load("common.js");
const {
  Chart, HeatMap, arrivals, curve, eachToken, firstToken, histogram, latency, rate, shortLatency, speedups, timeline,
} = await load("inference_charts.js");
const { Picker } = await load("inference_picker.js");

const ALIVE_MS = 1000;
const EAGER_MS = 300; // until the first values, because a user has just pressed Run

// --- called by Streamlit ---------------------------------------------------------------------------------------

export function mount({ data, parentElement, setStateValue, setTriggerValue }) {
  return mountView(View, { data, parentElement, setStateValue, setTriggerValue });
}

// The combinations to measure, chosen before a run: batch sizes as rows, threads or precisions as columns.
export function pick({ data, parentElement, setStateValue, setTriggerValue }) {
  return mountView(Picker, { data, parentElement, setStateValue, setTriggerValue });
}

function mountView(Kind, { data, parentElement, setStateValue, setTriggerValue }) {
  return keep(parentElement, (view) => view.key === data.key, () => new Kind(parentElement, data), (view) => {
    view.setState = setStateValue;
    view.onEnd = (status) => setTriggerValue("ended", status);
    view.update(data);
  });
}

// Whether a hex colour is nearer to black than to white.
function isDark(color) {
  const hex = /^#([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})$/i.exec(color);
  return Boolean(hex) && hex.slice(1).reduce((sum, part) => sum + parseInt(part, 16), 0) < 384;
}

// --- the view ---------------------------------------------------------------------------------------------------

class View extends PollingView {
  constructor(parent, data) {
    super(parent, data, { id: "inference", className: "iso-inference" });
    Object.assign(this, { key: data.key, runs: data.runs, cells: new Map(), about: null, verdict: {}, ladder: null, detail: null });
    Object.assign(this, { version: 0, slice: 0, over: false, openKey: data.cell ?? null, limitS: data.limit_s, quantile: data.quantile });
    this.build();
  }

  build() {
    this.area = this.node;
    const head = this.stateLine("Progress");
    this.words = element("section", "iso-card inf-verdict", "verdict");
    this.warning = element("p", "inf-warning", "warning", { role: "alert" });
    this.sentence = element("p", "inf-sentence", "sentence");
    this.besides = element("ul", "inf-besides", "besides");
    this.words.append(this.warning, this.sentence, this.besides);
    this.slices = element("div", "inf-slices", "slices", { role: "group", "aria-label": "Runtime and precision shown" });
    this.table = element("section", "iso-card inf-ladder", "ladder");
    this.maps = [
      new HeatMap(this, { id: "throughput", title: "Throughput", note: "measured; click a combination for details", value: (cell) => cell.samples_per_s, text: rate, tone: "var(--st-primary-color)" }),
      new HeatMap(this, { id: "latency", title: "Latency", note: "", value: (cell) => cell.judged, text: latency, tone: "var(--st-orange-color)" }),
    ];
    const chart = (options) => new Chart(this, options);
    this.curve = chart({ id: "curve", title: "Throughput against latency", note: "up and to the left is better", tall: true, figure: curve });
    this.ttft = chart({ id: "ttft", title: "Time to first token", note: "prefill: line p50, dotted p99; measured", tall: true, figure: firstToken });
    this.tpot = chart({ id: "tpot", title: "Time per output token", note: "decode with a KV cache: line p50, dotted p99; measured", tall: true, figure: eachToken });
    this.arrivals = chart({ id: "arrivals", title: "Latency against offered rate", note: "from arrival to answer, with time in the queue: line p50, dotted p99; measured", tall: true, wide: true, figure: arrivals });
    this.speedups = chart({ id: "speedups", title: "Speed-up over eager", note: "same weights, same requests; derived", figure: speedups });
    this.speedups.plot.toggleAttribute("data-free", true);
    this.histogram = chart({ id: "histogram", title: "Latency distribution", tall: true, figure: histogram });
    this.timeline = chart({ id: "timeline", title: "Latency over time", wide: true, tall: true, figure: timeline });
    this.cards = [this.curve, this.ttft, this.tpot, this.arrivals, this.speedups, this.histogram, this.timeline];
    this.grid = element("div", "iso-grid inf-grid");
    this.grid.append(...this.maps.map((map) => map.node), this.curve.node, this.ttft.node, this.tpot.node, this.arrivals.node, this.speedups.node);
    this.box = element("section", "inf-detail", "detail");
    const line = element("div", "inf-detail-top");
    this.detailTitle = element("h3", "inf-detail-title", "detail-title");
    this.closeButton = textButton("iso-reset", "Close", "detail-close", () => this.open(null));
    line.append(this.detailTitle, this.closeButton);
    this.detailFacts = element("dl", "inf-facts", "detail-facts");
    const detailGrid = element("div", "iso-grid inf-grid");
    detailGrid.append(this.histogram.node, this.timeline.node);
    this.box.append(line, this.detailFacts, detailGrid);
    this.node.append(head, this.notice, this.words, this.slices, this.grid, this.box, this.table);
    for (const part of [this.words, this.slices, this.table, this.box, this.grid]) part.hidden = true;
  }

  start() {
    this.begin(["live.css", "inference.css"], 500);
  }

  // Takes the page's data when the page was drawn again.
  update(data) {
    this.restyle();
    const before = JSON.stringify([this.limitS, this.quantile, this.openKey]);
    this.limitS = data.limit_s;
    this.quantile = data.quantile;
    if (data.cell !== this.givenCell) {
      this.givenCell = data.cell; // the page has another link; a cell that was clicked here comes back unchanged
      this.openKey = data.cell ?? null;
    }
    this.node.style.setProperty("--inf-most", isDark(this.look.background) ? "52%" : "70%"); // so that numbers stay readable
    if (JSON.stringify([this.limitS, this.quantile, this.openKey]) !== before || !this.answer) this.ask();
  }

  // --- data

  // Polls again because the question has changed, also when the run is over.
  ask() {
    this.wanted = true;
    this.poll();
  }

  needsPoll() {
    return !this.gone && (!this.over || this.wanted || this.failures > 0);
  }

  pollDelay() {
    if (this.wanted) return 0;
    return this.version ? ALIVE_MS : EAGER_MS;
  }

  async fetchUpdate() {
    this.wanted = false;
    const { found, answer } = await this.fetch("api/inference", {
      runs: this.runs.join(","),
      after: this.cursor,
      limit_s: this.limitS && String(this.limitS),
      quantile: this.quantile,
      cell: this.openKey,
      held: this.openKey && this.detail?.key === this.openKey && String(this.detail.version),
    });
    if (found) this.take(answer);
    else this.gone = answer.error;
  }

  take(answer) {
    if (answer.reset) {
      this.cells.clear();
      this.detail = null;
      this.debug.loads += 1;
    }
    if (answer.about) this.about = answer.about;
    for (const cell of answer.cells ?? []) this.cells.set(cell.key, cell);
    if (answer.cells?.length) this.version += 1;
    if (answer.ladder) this.ladder = answer.ladder;
    if (answer.detail) this.detail = answer.detail;
    if (this.detail && this.detail.key !== this.openKey) this.detail = null;
    this.verdict = answer.verdict ?? {};
    this.answer = answer;
    this.receivedAt = performance.now();
    this.cursor = answer.cursor;
    this.over = answer.over;
    this.wasAlive ||= !answer.over;
    if (this.about && this.slice >= this.about.slices.length) this.slice = 0;
  }

  shownCells() {
    return [...this.cells.values()]
      .filter((cell) => cell.at[0] === this.slice)
      .map((cell) => Object.assign(cell, { judged: cell[this.quantile] }));
  }

  cellAt(row, column) {
    return this.shownCells().find(({ at }) => at[1] === row && at[2] === column);
  }

  isOver(cell) {
    return Boolean(this.limitS) && cell[this.quantile] > this.limitS;
  }

  open(key) {
    const wanted = key && key !== this.openKey ? key : null; // a second click closes it
    if (wanted === this.openKey) return;
    this.openKey = wanted;
    this.givenCell = wanted;
    this.setState("cell", wanted);
    if (wanted) this.ask();
    else this.detail = null;
    this.paint();
  }

  // --- picture

  showWords() {
    const { status, over, progress } = this.answer;
    this.showState(status, over ? null : progress, remainingText(this.answer));
    this.showVerdict();
    const any = Boolean(this.about) && this.cells.size > 0;
    this.grid.hidden = !any;
    if (!any) return over;
    this.showSlices();
    this.arrange();
    setText(this.maps[1].title, `Latency, ${this.quantile}`);
    const limit = this.limitS ? `grey: over ${shortLatency(this.limitS)}` : "no limit";
    setText(this.maps[1].note, `measured; ${limit}`);
    for (const map of this.maps) map.update();
    this.showLadder();
    this.showDetail();
    return true;
  }

  async redraw(Plotly) {
    if (!this.grid.hidden) await super.redraw(Plotly);
  }

  showFacts() {
    if (!this.answer) return;
    const { over, age_s: age, doing } = this.answer;
    const facts = [];
    if (!over && doing) facts.push(doing);
    if (!over && age !== null) facts.push(this.lastUpdate(age));
    setText(this.facts, facts.join(" · "));
  }

  showVerdict() {
    const { sentence, warning = "", besides = [], waits } = this.verdict;
    this.words.hidden = !sentence;
    this.words.toggleAttribute("data-waits", Boolean(waits));
    setText(this.warning, warning);
    this.warning.hidden = !warning;
    setText(this.sentence, sentence ?? "");
    refill(this.besides, besides, () => besides.map((text) => withText("li", "", text)));
  }

  // The charts in the order that suits the kind of measurement.
  arrange() {
    const { kind } = this.about;
    if (kind === this.arranged) return;
    this.arranged = kind;
    const [throughput, slowness] = this.maps.map((map) => map.node);
    const order = {
      matrix: [throughput, slowness, this.curve.node],
      arrivals: [this.arrivals.node, slowness],
      ladder: [this.speedups.node, this.curve.node, throughput, slowness],
    }[kind];
    const rest = [this.ttft, this.tpot, this.speedups, this.arrivals, this.curve].map((chart) => chart.node);
    this.grid.dataset.kind = kind;
    throughput.hidden = kind === "arrivals"; // it would only repeat the arrival rate
    this.grid.append(...order, ...rest.filter((node) => !order.includes(node)));
  }

  showSlices() {
    const { slices } = this.about;
    this.slices.hidden = slices.length < 2;
    const button = (label, n) => textButton("inf-slice", label, `slice-${n}`, () => {
      this.slice = n;
      this.paint();
    }, { "aria-pressed": String(n === this.slice) });
    refill(this.slices, [slices, this.slice], () => (slices.length < 2 ? [] : slices.map(({ label }, n) => button(label, n))));
  }

  // A table with a row for each runtime, and the reason below a runtime that did not run.
  showLadder() {
    const { ladder } = this;
    this.table.hidden = !ladder;
    const wanted = this.about.kind === "ladder" ? this.slices : this.box; // in a comparison of runtimes, the table comes first
    if (ladder && this.table.previousElementSibling !== wanted) wanted.after(this.table);
    if (ladder) refill(this.table, ladder, () => this.ladderParts());
  }

  ladderParts() {
    const { ladder } = this;
    const table = document.createElement("table");
    const head = table.createTHead().insertRow();
    for (const title of ladder.columns) head.append(withText("th", "", title, "", { scope: "col" }));
    const body = table.createTBody();
    for (const { name, values, why } of ladder.rows) {
      const row = body.insertRow();
      row.append(withText("th", "", name, "", { scope: "row" }));
      for (const value of values) row.insertCell().textContent = value;
      if (why) {
        const line = body.insertRow();
        line.className = "inf-why";
        const cell = line.insertCell();
        cell.colSpan = ladder.columns.length;
        cell.append(withText("div", "", why));
      }
    }
    const title = withText("div", "iso-title", "Runtimes: the same weights, run by different software");
    const scroll = element("div", "inf-scroll");
    scroll.append(table);
    const note = withText("div", "iso-words", ladder.note);
    return [title, scroll, note];
  }

  showDetail() {
    const { detail } = this;
    this.box.hidden = !detail;
    if (!detail) return;
    setText(this.detailTitle, detail.title);
    refill(this.detailFacts, detail.facts, () => detail.facts.map(([title, value, how]) => {
      const fact = element("div", "", "", { title: how });
      fact.append(withText("dt", "", title), withText("dd", "", value), withText("dd", "inf-how", how));
      return fact;
    }));
  }
}
