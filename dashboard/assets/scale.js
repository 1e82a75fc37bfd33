// The live charts of a scaling study, fed by polling one route. The figures come made (engine/charts_scale.py); here they
// get the page's theme. A chart is mounted once and then only redrawn.

const VERSION = new URL(import.meta.url).searchParams.get("v") ?? "";
const { PollingView, duration, element, keep, loadPlotly, readLook, setText } =
  await import(new URL(`common.js?v=${VERSION}`, import.meta.url).href); // a static import would lose the version

const ALIVE_MS = 1000;
const CHARTS = [
  { id: "speedup", title: "Speed-up", note: "examples/s by those of one rank" },
  { id: "efficiency", title: "Efficiency", note: "speed-up by number of ranks" },
  { id: "step", title: "Where a step's time goes", note: "of the mean rank, measured" },
];
const capital = (text) => text && text[0].toUpperCase() + text.slice(1);

export function mount({ data, parentElement }) {
  return keep(parentElement, (view) => view.study === data.study, () => new View(parentElement, data), (view) => view.update());
}

class Card {
  constructor(chart, view) {
    Object.assign(this, { chart, view, mounted: false, drawn: "" });
    this.node = element("section", "iso-card", `scale-chart-${chart.id}`);
    this.node.setAttribute("aria-label", chart.title);
    const top = element("div", "iso-top");
    const title = element("div", "iso-title");
    title.textContent = chart.title;
    top.append(title);
    const note = element("div", "iso-note");
    note.textContent = chart.note;
    this.legend = element("div", "iso-legend scale-legend", `scale-legend-${chart.id}`);
    this.plot = element("div", "iso-plot", `scale-plot-${chart.id}`);
    this.plot.dataset.empty = "";
    this.words = element("div", "iso-words");
    this.node.append(top, note, this.legend, this.plot, this.words);
  }

  async update(Plotly, figure) {
    setText(this.words, figure ? "" : this.view.answer?.over ? "Nothing was measured." : "");
    this.words.hidden = !this.words.textContent;
    this.plot.hidden = !this.words.hidden;
    if (!figure) return;
    const { look, cursor } = this.view;
    const state = `${cursor}|${look.signature}`;
    if (state === this.drawn) return;
    this.drawn = state;
    this.showLegend(figure.data);
    const shown = [figure.data, themed(figure.layout, look)];
    if (this.mounted) return Plotly.react(this.plot, ...shown);
    this.mounted = true;
    this.view.debug.mounts += 1;
    delete this.plot.dataset.empty;
    return Plotly.newPlot(this.plot, ...shown, { displayModeBar: false, doubleClick: false, scrollZoom: false, showTips: false });
  }

  showLegend(traces) {
    this.legend.replaceChildren(...traces.map(({ name, line, marker }) => {
      const entry = element("span", "iso-entry");
      entry.textContent = name;
      const [on, all] = { dash: [4, 6], dot: [1.5, 3] }[line?.dash] ?? [1, 1];
      entry.style.setProperty("--swatch", `repeating-linear-gradient(to right, ${line?.color ?? marker.color} 0 ${on}px, transparent ${on}px ${all}px)`);
      return entry;
    }));
  }
}

// The figure's own axes, in the colours and the font of the page.
function themed(layout, look) {
  const axis = (given) => ({
    ...given, color: look.faint, gridcolor: look.grid, showline: false, ticks: "", zeroline: false, fixedrange: true, automargin: true,
    title: { ...given.title, standoff: 6, font: { size: 11 } },
  });
  return {
    ...layout,
    autosize: true, showlegend: false, dragmode: false,
    margin: { l: 46, r: 10, t: 8, b: 36 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: look.background,
    font: { family: look.font, size: 11, color: look.faint },
    hoverlabel: { bgcolor: look.background, bordercolor: look.border, font: { family: look.font, size: 11.5, color: look.text }, namelength: -1 },
    xaxis: { ...axis(layout.xaxis), showgrid: false },
    yaxis: axis(layout.yaxis),
  };
}

class View extends PollingView {
  constructor(parent, data) {
    super();
    Object.assign(this, { parent, study: data.study, plotlyVersion: data.plotly_version, cursor: "", figures: {}, answer: null });
    this.build();
  }

  build() {
    this.node = element("div", "iso-live iso-scale-view", "scale");
    this.node.style.visibility = "hidden"; // until the stylesheet is there
    this.node.isoflop = this.debug;
    const head = element("div", "iso-head");
    this.badge = element("span", "iso-badge", "scale-status");
    this.badge.setAttribute("role", "status");
    this.progress = element("div", "iso-progress", "scale-progress");
    this.progress.setAttribute("role", "progressbar");
    this.progress.setAttribute("aria-label", "Progress of the study");
    this.bar = document.createElement("div");
    this.progress.append(this.bar);
    this.left = element("span", "iso-left", "scale-now");
    this.facts = element("span", "iso-facts", "scale-facts");
    head.append(this.badge, this.progress, this.left, this.facts);
    this.notice = element("p", "iso-notice", "scale-notice");
    this.notice.setAttribute("role", "alert");
    this.notice.hidden = true;
    this.cards = CHARTS.map((chart) => new Card(chart, this));
    this.area = element("div", "iso-grid scale-grid", "scale-grid");
    this.area.append(...this.cards.map((card) => card.node));
    this.node.append(head, this.notice, this.area);
    this.parent.append(this.node);
  }

  start() {
    this.begin(["live.css", "scale.css"], 500);
  }

  charts() {
    return this.cards;
  }

  // The page was drawn anew: repeats may have been added, the theme changed.
  update() {
    this.look = readLook(this.node);
    this.again = true; // also of a study that is over
    this.paint().catch(() => {}); // without Plotly yet; the poll says so
    this.poll();
  }

  asks() {
    return !this.gone && (!this.answer?.over || this.failures > 0 || this.again);
  }

  rest() {
    return ALIVE_MS;
  }

  async news() {
    this.again = false;
    const { found, answer } = await this.fetch("api/scale", { study: this.study, after: this.cursor });
    if (!found) {
      this.gone = true;
      this.say(answer.error);
      return;
    }
    this.answer = answer;
    this.cursor = answer.cursor;
    if (answer.figures) this.figures = answer.figures;
    this.receivedAt = performance.now();
  }

  settled() {
    this.notice.hidden = !this.gone;
  }

  async paint() {
    if (!this.answer || this.ended) return;
    this.showHead();
    if (!Object.keys(this.figures).length && !this.answer.over) return;
    const Plotly = await loadPlotly(this.plotlyVersion);
    for (const card of this.cards) {
      if (this.ended) return;
      await card.update(Plotly, this.figures[card.chart.id]);
    }
  }

  resize() {
    for (const { mounted, plot } of this.cards) if (mounted && !plot.hidden) window.Plotly.Plots.resize(plot);
  }

  showHead() {
    const { status, over, progress, now } = this.answer;
    this.badge.dataset.status = status;
    setText(this.badge, capital(status));
    this.progress.hidden = over;
    this.bar.style.width = `${100 * progress}%`;
    this.progress.setAttribute("aria-valuenow", String(Math.round(100 * progress)));
    setText(this.left, now && !over ? `now ${now}` : "");
    this.left.hidden = !this.left.textContent;
    this.showFacts();
  }

  showFacts() {
    if (!this.answer) return;
    const { done, of, over } = this.answer;
    const facts = [`${done} of ${of} runs done`];
    if (!over) facts.push(`last update ${duration((performance.now() - this.receivedAt) / 1000)} ago`);
    setText(this.facts, facts.join(" · "));
  }
}
