// The charts of one GPU, or of everything else in the machine, under one heading.

const VERSION = new URL(import.meta.url).searchParams.get("v") ?? "";
const load = (name) => import(new URL(`${name}?v=${VERSION}`, import.meta.url).href); // a static import would lose the version
const { ROOT, capital, element, refill, setText, textButton, threeDigits, withText } = await load("common.js");
const { MetricCard, clock, figure, nowOf, reasonLines } = await load("monitor_card.js");

export class Group {
  constructor(view, title, charts, prefix, open) {
    Object.assign(this, { view, prefix, open });
    this.node = element("section", "mon-group", `group-${prefix ? prefix.slice(0, -1) : "system"}`);
    const id = prefix ? prefix.slice(0, -1) : "system";
    this.heading = prefix ? textButton("mon-heading", "", "", () => this.toggle()) : element("div", "mon-heading");
    const how = "Measured: the newest readings. Click the title of a chart to see how.";
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

  // Why a GPU was not read for a while, or cannot be read at all; shown once for the GPU, not on each of its charts.
  showRest(range) {
    if (!this.prefix) return;
    const { about, missing } = this.view;
    const mine = about.columns.filter((column) => column.startsWith(this.prefix));
    const reasons = new Set(mine.map((column) => missing[column]));
    const lost = mine.length && reasons.size === 1 ? [...reasons][0] : undefined;
    const rests = this.view.restsIn(range);
    const times = rests.map(([from, to]) => `${clock(Math.max(from, range[0]))} – ${clock(Math.min(to, range[1]))}`);
    const lines = rests.length ? [`${times.join(", ")}: ${about.resting}`] : [];
    if (lost && lost !== about.resting) lines.push(`This GPU cannot be read now. ${capital(lost)}`);
    for (const card of this.cards) card.groupReason = lost;
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

  // The processes that hold the GPU's memory: our runs by name, other processes only with their memory.
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

export const titled = (text) => withText("div", "iso-title", text);
export const words = (text) => withText("div", "iso-words", text);

export function runLink(id, text) {
  return withText("a", "mon-link", text, "", { href: new URL(`train?run=${encodeURIComponent(id)}`, ROOT).href, title: text });
}
