// The live charts of a scaling study, fed by polling one route. The server sends complete figures
// (engine/charts/scaling.py); the page's theme is applied here.

const VERSION = new URL(import.meta.url).searchParams.get("v") ?? "";
const load = (name) => import(new URL(`${name}?v=${VERSION}`, import.meta.url).href); // a static import would lose the version
const { PollingView, element, keep, setText } = await load("common.js");
const { Card } = await load("card.js");

const ALIVE_MS = 1000;
const CHARTS = [
  { id: "speedup", title: "Speed-up", note: "samples/s divided by those of one rank" },
  { id: "efficiency", title: "Efficiency", note: "speed-up divided by the number of ranks" },
  { id: "step", title: "Where a step's time goes", note: "mean over the ranks, measured" },
];

export function mount({ data, parentElement }) {
  return keep(parentElement, (view) => view.study === data.study, () => new View(parentElement, data), (view) => view.update());
}

class StudyCard extends Card {
  constructor(view, chart) {
    super(view, chart, { id: chart.id, prefix: "scale-" });
    this.legend.classList.add("scale-legend");
    this.sub.replaceWith(this.note, this.legend);
  }

  async update(Plotly) {
    const { cursor, figures, answer } = this.view;
    const figure = figures[this.chart.id];
    this.showWords(!figure && answer.over ? "Nothing was measured." : "");
    if (!figure) return;
    this.showLegend(figure.data.map(({ name, line, marker }) => ({ name, swatch: dashed(line?.color ?? marker.color, line?.dash) })));
    await this.draw(Plotly, cursor, () => [figure.data, this.themed(figure.layout)]);
  }

  listen() {} // nothing to zoom

  // The axes of a figure in the colours and the font of the page.
  themed(layout) {
    const { look } = this.view;
    const axis = (given) => ({
      ...given, color: look.faint, gridcolor: look.grid, showline: false, ticks: "", zeroline: false, fixedrange: true, automargin: true,
      title: { ...given.title, standoff: 6, font: { size: 11 } },
    });
    const frame = this.frame({ dragmode: false, margin: { l: 46, r: 10, t: 8, b: 36 } });
    frame.hoverlabel.namelength = -1;
    return { ...frame, ...layout, hovermode: layout.hovermode, xaxis: { ...axis(layout.xaxis), showgrid: false }, yaxis: axis(layout.yaxis) };
  }
}

// A swatch with the dashes of its line.
function dashed(color, dash) {
  const [on, all] = { dash: [4, 6], dot: [1.5, 3] }[dash] ?? [1, 1];
  return `repeating-linear-gradient(to right, ${color} 0 ${on}px, transparent ${on}px ${all}px)`;
}

class View extends PollingView {
  constructor(parent, data) {
    super(parent, data, { id: "scale", className: "iso-scale-view" });
    Object.assign(this, { study: data.study, figures: {} });
    const head = this.stateLine("Progress of the study");
    this.cards = CHARTS.map((chart) => new StudyCard(this, chart));
    this.area = element("div", "iso-grid scale-grid", "scale-grid");
    this.area.append(...this.cards.map((card) => card.node));
    this.node.append(head, this.notice, this.area);
  }

  start() {
    this.begin(["live.css", "scale.css"], 500);
  }

  // The page was drawn again: repeats may have been added, the theme changed.
  update() {
    this.again = true; // also for a study that is over
    this.restyle();
    this.poll();
  }

  needsPoll() {
    return !this.gone && (!this.answer?.over || this.failures > 0 || this.again);
  }

  pollDelay() {
    return ALIVE_MS;
  }

  async fetchUpdate() {
    this.again = false;
    const { found, answer } = await this.fetch("api/scale", { study: this.study, after: this.cursor });
    if (!found) {
      this.gone = answer.error;
      return;
    }
    this.answer = answer;
    this.cursor = answer.cursor;
    if (answer.figures) this.figures = answer.figures;
    this.receivedAt = performance.now();
  }

  showWords() {
    const { status, over, progress, now } = this.answer;
    this.showState(status, over ? null : progress, now && !over ? `now: ${now}` : "");
    return Object.keys(this.figures).length > 0 || over;
  }

  showFacts() {
    if (!this.answer) return;
    const { done, of, over } = this.answer;
    setText(this.facts, [`${done} of ${of} runs done`, ...(over ? [] : [this.lastUpdate()])].join(" · "));
  }
}
