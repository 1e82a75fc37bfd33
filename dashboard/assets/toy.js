// Paths of optimizers on a quadratic loss of two weights: a canvas that is drawn once per frame, a play button and a
// slider. The paths come as arrays. The loss surface is drawn here, because its level lines are ellipses. Streamlit calls
// this again with the same element after each change of a setting; the canvas stays, so nothing flickers.

const VIEWS = new WeakMap();
const X = 5, Y = 2.25; // half the visible width and height; their ratio is the canvas's
const LEVELS = 13;
const SECONDS = 8; // of a whole path

export default function ({ data, parentElement }) {
  let view = VIEWS.get(parentElement);
  if (!view) VIEWS.set(parentElement, (view = new View(parentElement)));
  const owner = (view.owner = Symbol("mount"));
  view.show(data);
  return () => {
    if (view.owner !== owner) return;
    view.end();
    VIEWS.delete(parentElement);
  };
}

const number = (value) => (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e4) ? value.toExponential(1) : value.toPrecision(3));

class View {
  constructor(parent) {
    this.root = parent.querySelector(".toy");
    this.canvas = this.root.querySelector("canvas");
    this.button = this.root.querySelector("button");
    this.slider = this.root.querySelector("input");
    this.at = this.root.querySelector("output");
    this.legend = this.root.querySelector("ul");
    this.step = 0;
    this.calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.button.onclick = () => (this.playing ? this.pause() : this.play());
    this.slider.oninput = () => {
      this.pause();
      this.goTo(+this.slider.value);
    };
    this.resized = new ResizeObserver(() => this.draw());
    this.resized.observe(this.canvas);
  }

  end() {
    this.pause();
    this.resized.disconnect();
  }

  show(data) {
    const text = JSON.stringify(data);
    const isNew = text !== this.shown;
    this.shown = text;
    this.data = data;
    this.slider.max = data.steps;
    if (isNew) {
      this.makeLegend();
      this.step = this.calm ? data.steps : 0;
      if (!this.calm) this.play();
    }
    this.goTo(this.step); // redraw, because a new theme has other colours
  }

  makeLegend() {
    this.legend.replaceChildren(
      ...this.data.walks.map((walk) => {
        const entry = document.createElement("li");
        entry.style.setProperty("--swatch", walk.color);
        if (walk.dashed) entry.dataset.dashed = "";
        const value = document.createElement("b");
        entry.append(walk.label, value);
        return entry;
      }),
    );
  }

  play() {
    if (this.step >= this.data.steps) this.step = 0;
    this.pause();
    this.playing = true;
    this.button.textContent = "Pause";
    let last;
    const tick = (now) => {
      if (!this.playing) return;
      this.step = Math.min(this.data.steps, this.step + ((now - (last ?? now)) / 1000) * (this.data.steps / SECONDS));
      last = now;
      this.goTo(this.step);
      if (this.step >= this.data.steps) this.pause();
      else this.frame = requestAnimationFrame(tick);
    };
    this.frame = requestAnimationFrame(tick);
  }

  pause() {
    this.playing = false;
    cancelAnimationFrame(this.frame);
    this.button.textContent = "Play";
  }

  goTo(step) {
    this.step = step;
    const whole = Math.floor(step);
    this.slider.value = whole;
    this.at.textContent = `step ${whole} of ${this.data.steps}`;
    this.data.walks.forEach((walk, i) => {
      const lost = walk.diverged_at !== null && whole >= walk.diverged_at;
      const entry = this.legend.children[i];
      entry.toggleAttribute("data-lost", lost);
      const loss = walk.loss[Math.min(whole, walk.loss.length - 1)];
      entry.lastChild.textContent = lost ? `diverged at step ${walk.diverged_at}` : `loss ${number(loss)}`;
    });
    this.draw();
  }

  draw() {
    if (!this.data) return;
    const { canvas } = this;
    const ratio = devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    if (!width || !height) return;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const c = canvas.getContext("2d");
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    c.clearRect(0, 0, width, height);
    this.px = (x) => (0.5 + x / (2 * X)) * width;
    this.py = (y) => (0.5 - y / (2 * Y)) * height;
    const style = getComputedStyle(this.root);
    this.drawBowl(c, style.color, width, height);
    for (const walk of this.data.walks) this.drawWalk(c, walk, style);
  }

  // Level lines at losses that differ by a constant factor, from the loss in the corner downwards.
  drawBowl(c, color, width, height) {
    const kappa = this.data.condition;
    const top = (X * X + kappa * Y * Y) / 2;
    c.save();
    c.strokeStyle = c.fillStyle = color;
    c.lineWidth = 1;
    for (let i = 0; i < LEVELS; i++) {
      const level = top / 2.2 ** i;
      c.beginPath();
      c.ellipse(width / 2, height / 2, (Math.sqrt(2 * level) / (2 * X)) * width, (Math.sqrt((2 * level) / kappa) / (2 * Y)) * height, 0, 0, 7);
      c.globalAlpha = 0.022;
      c.fill();
      c.globalAlpha = 0.16;
      c.stroke();
    }
    c.globalAlpha = 0.6;
    c.font = `12px ${getComputedStyle(this.root).fontFamily}`;
    c.textAlign = "right";
    c.fillText("x: curvature 1", width - 10, height / 2 - 8);
    c.textAlign = "left";
    c.fillText(`y: curvature ${kappa}`, width / 2 + 8, 18);
    c.beginPath(); // the minimum
    c.moveTo(width / 2 - 5, height / 2);
    c.lineTo(width / 2 + 5, height / 2);
    c.moveTo(width / 2, height / 2 - 5);
    c.lineTo(width / 2, height / 2 + 5);
    c.stroke();
    c.restore();
  }

  drawWalk(c, walk, style) {
    const whole = Math.min(Math.floor(this.step), walk.x.length - 1);
    const part = whole < walk.x.length - 1 ? this.step - whole : 0;
    const between = (v) => v[whole] + (part ? part * (v[whole + 1] - v[whole]) : 0);
    c.save();
    c.strokeStyle = c.fillStyle = walk.color;
    c.lineWidth = 2;
    c.lineJoin = "round";
    c.setLineDash(walk.dashed ? [5, 4] : []);
    c.beginPath();
    for (let i = 0; i <= whole; i++) c.lineTo(this.px(walk.x[i]), this.py(walk.y[i]));
    const x = this.px(between(walk.x)), y = this.py(between(walk.y));
    c.lineTo(x, y);
    c.stroke();
    c.setLineDash([]);
    for (let i = 0; i <= whole; i++) {
      c.beginPath();
      c.arc(this.px(walk.x[i]), this.py(walk.y[i]), 2, 0, 7);
      c.fill();
    }
    if (walk.diverged_at !== null && whole >= walk.diverged_at) this.drawLost(c, walk, style);
    else {
      c.beginPath();
      c.arc(x, y, 6, 0, 7);
      c.fill();
      c.lineWidth = 2;
      c.strokeStyle = style.getPropertyValue("--st-background-color") || "white";
      c.stroke();
    }
    c.restore();
  }

  // A red cross where a diverged path left the visible area.
  drawLost(c, walk, style) {
    let last = 0;
    for (let i = 0; i < walk.x.length; i++) if (Math.abs(walk.x[i]) <= X && Math.abs(walk.y[i]) <= Y) last = i;
    const dx = walk.x[last + 1] - walk.x[last], dy = walk.y[last + 1] - walk.y[last];
    const share = Math.min(1, (Math.sign(dx) * X * 0.97 - walk.x[last]) / dx, (Math.sign(dy) * Y * 0.96 - walk.y[last]) / dy);
    const within = Number.isFinite(share) ? Math.max(0, share) : 0;
    const x = this.px(walk.x[last] + within * dx), y = this.py(walk.y[last] + within * dy);
    c.strokeStyle = style.getPropertyValue("--st-red-color") || "#d92d20";
    c.lineWidth = 3;
    c.beginPath();
    c.moveTo(x - 6, y - 6);
    c.lineTo(x + 6, y + 6);
    c.moveTo(x + 6, y - 6);
    c.lineTo(x - 6, y + 6);
    c.stroke();
  }
}
