// One plot of the page: its axes, curves, legend, and the values that pointer and keys read.

function add(parent, name, attributes = {}, text = "") {
  const space = name === "svg" || parent.namespaceURI.endsWith("svg") ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml";
  const element = document.createElementNS(space, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return parent.appendChild(element);
}

class Plot {
  constructor(figure) {
    this.overN = figure.dataset.plot === "by_n";
    this.section = DATA.sections[figure.dataset.section];
    this.canvas = figure.querySelector(".canvas");
    this.choice = { x: this.overN ? "n" : "step", y: this.overN ? this.section.measure : "accuracy", range: this.overN ? "all" : "close" };
    for (const input of figure.querySelectorAll("input")) {
      if (input.checked) this.choice[input.dataset.key] = input.value;
      input.addEventListener("change", () => { this.choice[input.dataset.key] = input.value; this.draw(); });
    }
    if (!this.overN && !figure.querySelector('input[value="accuracy"]')) this.choice.y = "loss";
    this.hidden = new Set(this.series().filter((series) => !series.shown).map(keyOf));
    this.buildLegend(figure.querySelector(".legend"));
    new ResizeObserver(() => { if (this.canvas.clientWidth !== this.width) this.draw(); }).observe(this.canvas);
    this.draw();
  }

  series() { return this.overN ? seriesOverN(this.section) : seriesOfCurves(this.section, this.choice); }

  // The legend: a button for each method, and if it has several n, one for each of its curves.
  buildLegend(legend) {
    const buttons = [];
    const refresh = () => buttons.forEach(([button, members]) =>
      button.setAttribute("aria-pressed", members.some((series) => !this.hidden.has(keyOf(series)))));
    const button = (entry, text, members, swatch) => {
      const toggle = add(entry, "button", { type: "button", "aria-label": members.map(nameOf).join("; ") });
      this.swatch(toggle, swatch);
      add(toggle, "span", {}, text);
      toggle.addEventListener("click", () => {
        const hide = members.some((series) => !this.hidden.has(keyOf(series)));
        for (const series of members) hide ? this.hidden.add(keyOf(series)) : this.hidden.delete(keyOf(series));
        refresh();
        this.draw();
      });
      buttons.push([toggle, members]);
    };
    for (const method of new Set(this.series().map((series) => series.method))) {
      const members = this.series().filter((series) => series.method === method);
      const entry = add(legend, "div", { class: "entry" });
      const single = members.length === 1;
      button(entry, single ? nameOf(members[0]) : method, members, { ...styleOf(members[0]), ...(single ? {} : { dash: null }) });
      if (!single) for (const series of members) button(entry, `n = ${series.every}`, [series], { ...styleOf(series), marker: null });
    }
    refresh();
  }

  swatch(parent, { colour, marker, dash }) {
    const svg = add(parent, "svg", { viewBox: "0 0 34 14", "aria-hidden": "true" });
    svg.style.setProperty("--colour", colour);
    if (dash !== null) add(svg, "path", { class: "curve", d: "M1 7H33", "stroke-dasharray": dash });
    if (marker) add(svg, "path", { class: "marker", d: marker, transform: "translate(17 7)" });
  }

  draw() {
    this.canvas.replaceChildren();
    this.width = this.canvas.clientWidth;
    this.height = Math.round(Math.min(Math.max(this.width * 0.5, 260), 420));
    this.shown = this.series().filter((series) => !this.hidden.has(keyOf(series)));
    this.shown.forEach((series) => { series.points = series.points.filter(drawable); });
    const ends = this.shown.map((series) => series.points.at(-1)?.x).filter((x) => x > 0);
    this.log = this.overN || (this.choice.x !== "step" && Math.max(...ends) > 4 * Math.min(...ends));
    if (this.log) this.shown.forEach((series) => { series.points = series.points.filter((point) => point.x > 0); });
    const empty = this.shown.filter((series) => !series.points.length);
    this.shown = this.shown.filter((series) => series.points.length);
    const named = this.shown.map(nameOf).join("; ");
    this.svg = add(this.canvas, "svg", {
      viewBox: `0 0 ${this.width} ${this.height}`, tabindex: 0, role: "application", "aria-roledescription": "plot",
      "aria-label": `${quantityOf(this.section, this.choice.y)} against ${NAMES[this.choice.x] ?? "n"}: ${named}. Use the arrow keys to read the values.`,
    });
    if (empty.length) add(this.canvas, "p", { class: "note" }, `Not on this axis, because always 0 or unknown: ${empty.map(nameOf).join("; ")}.`);
    this.tip = add(this.canvas, "div", { class: "tip", role: "status" });
    if (!this.shown.length) {
      add(this.svg, "text", { x: this.width / 2, y: this.height / 2, "text-anchor": "middle" }, "Nothing to show: choose a curve below");
      return;
    }
    this.scale();
    this.drawAxes();
    this.groups = this.shown.map((series, i) => this.drawSeries(series, i));
    if (this.labelled) this.drawNames();
    this.listen();
  }

  scale() {
    const points = this.shown.flatMap((series) => series.points);
    const close = this.choice.range === "close"; // the bands of few seeds may be cut off
    let [low, high] = [Math.min(...points.map((p) => (close ? p.y : p.low ?? p.y))), Math.max(...points.map((p) => (close ? p.y : p.high ?? p.y)))];
    if (this.choice.y === "accuracy") [low, high] = [Math.max(low, 0), Math.min(high, 1)];
    if (close) { // around the final values
      const finals = this.shown.map((series) => series.points.at(-1).y);
      const [worst, all] = [this.choice.y === "loss" ? Math.max(...finals) : Math.min(...finals), high - low];
      const apart = Math.abs(worst - (this.choice.y === "loss" ? low : high));
      const room = apart > 0.02 * all ? 0.8 * apart : 0.3 * all; // all end at the best value, say a single curve
      if (this.choice.y === "loss") high = Math.min(high, worst + room + 1e-6);
      else low = Math.max(low, worst - room - 1e-6);
    }
    const target = this.section.target;
    this.target = target && target[0] === this.choice.y && target[1] > low && target[1] < high ? target[1] : null;
    const pad = 0.05 * (high - low) || 0.01 * Math.abs(high) || 1;
    this.domain = [low - pad, high + pad];
    this.labelled = this.width > 640 && this.shown.length <= 8;
    const beside = this.labelled ? 14 + Math.max(...this.shown.map((series) => this.widthOf(shortNameOf(series)))) : 14;
    this.box = { left: 52, right: this.width - beside, top: 28, bottom: this.height - 44 };
    const visible = this.log && !this.overN ? points.filter((point) => point.y > low && point.y < high) : points;
    const xs = (visible.length ? visible : points).map((point) => point.x);
    const scale = this.log ? Math.log : Number;
    const [from, to] = [scale(Math.min(...xs)), scale(Math.max(...xs))];
    const { left, right, top, bottom } = this.box;
    const gap = this.overN ? 16 : 0;
    this.x = (value) => left + gap + (right - left - 2 * gap) * (to > from ? (scale(value) - from) / (to - from) : 0.5);
    this.y = (value) => bottom - (bottom - top) * (value - this.domain[0]) / (this.domain[1] - this.domain[0]);
    this.xs = [...new Set(xs)].sort((a, b) => a - b);
  }

  widthOf(name) {
    const label = add(this.svg, "text", { class: "name" }, name);
    const width = label.getComputedTextLength();
    label.remove();
    return width;
  }

  drawAxes() {
    const { left, right, top, bottom } = this.box;
    const [from, to] = [this.xs[0], this.xs.at(-1)];
    const [factor, unit] = unitOf(this.choice.x, to);
    const linearTicks = () => ticksOf(from / factor, to / factor, Math.max(3, (right - left) / 70)).map((tick) => tick * factor);
    const ticks = this.overN || from === to ? this.xs : this.log ? logTicksOf(from, to, this.choice.x) : linearTicks();
    const logged = this.log && !this.overN; // with a unit at each number
    for (const tick of ticksOf(...this.domain, (bottom - top) / 55)) {
      add(this.svg, "path", { class: "grid", d: `M${left} ${this.y(tick)}H${right}` });
      add(this.svg, "text", { x: left - 8, y: this.y(tick) + 4, "text-anchor": "end" }, String(tick));
    }
    let last = -Infinity;
    for (const tick of ticks) {
      const x = this.x(tick);
      add(this.svg, "path", { class: "axis", d: `M${x} ${bottom}v4` });
      if (x - last < (logged ? 56 : 24)) continue;
      last = x;
      const text = logged ? format(this.choice.x, tick) : (+(tick / factor).toPrecision(6)).toLocaleString("en");
      add(this.svg, "text", { x, y: bottom + 18, "text-anchor": "middle" }, text);
    }
    add(this.svg, "path", { class: "axis", d: `M${left} ${bottom}H${right}` });
    const label = this.overN ? "n, steps between two synchronizations (log)" : NAMES[this.choice.x] + (logged ? " (log)" : unit ? ` (${unit})` : "");
    add(this.svg, "text", { x: (left + right) / 2, y: bottom + 37, "text-anchor": "middle" }, label);
    add(this.svg, "text", { x: 0, y: 12 }, quantityOf(this.section, this.choice.y));
    if (this.target !== null) {
      add(this.svg, "path", { class: "target", d: `M${left} ${this.y(this.target)}H${right}` });
      add(this.svg, "text", { x: left + 6, y: this.y(this.target) - 5 }, `target ${this.target}`);
    }
    const clip = add(add(this.svg, "clipPath", { id: `clip-${Plot.count = (Plot.count ?? 0) + 1}` }), "rect");
    for (const [key, value] of Object.entries({ x: left - 6, y: top - 6, width: right - left + 12, height: bottom - top + 6 })) clip.setAttribute(key, value);
  }

  drawSeries({ points, ...series }, index) {
    const { colour, marker, dash } = styleOf(series);
    const offset = this.overN ? 4 * (index - (this.shown.length - 1) / 2) : 0; // so that whiskers do not overlap
    const at = (point, value) => `${(this.x(point.x) + offset).toFixed(1)} ${this.y(value).toFixed(1)}`;
    const group = add(this.svg, "g", { "clip-path": `url(#clip-${Plot.count})` });
    group.style.setProperty("--colour", colour);
    const withBounds = points.filter((point) => point.low !== null);
    if (this.overN) for (const point of withBounds) add(group, "path", { class: "whisker", d: `M${at(point, point.low)}L${at(point, point.high)}` });
    else if (withBounds.length > 1) {
      const around = [...withBounds.map((p) => at(p, p.high)), ...withBounds.map((p) => at(p, p.low)).reverse()];
      add(group, "path", { class: "band", d: `M${around.join("L")}Z` });
    }
    add(group, "path", { class: "curve", d: `M${points.map((p) => at(p, p.y)).join("L")}`, "stroke-dasharray": dash });
    let last = -Infinity;
    const end = this.x(points.at(-1).x);
    points.forEach((point, i) => { // few enough markers to see the curve
      const x = this.x(point.x);
      if (!this.overN && i < points.length - 1 && (x - last < 64 + 7 * (index % 5) || end - x < 24)) return;
      last = x;
      add(group, "path", { class: "marker", d: marker, transform: `translate(${at(point, point.y).replace(" ", ",")})` });
    });
    return group;
  }

  drawNames() {
    const names = this.shown.map((series) => ({ series, end: series.points.at(-1) })).map(({ series, end }) =>
      ({ series, x: this.x(end.x) + 14, y: Math.min(this.y(end.y), this.box.bottom) + 4 })).sort((a, b) => a.y - b.y);
    names.forEach((name, i) => { if (i) name.y = Math.max(name.y, names[i - 1].y + 14); });
    const excess = Math.max(0, names.at(-1).y - this.box.bottom);
    names.forEach((name) => {
      const label = add(this.svg, "text", { class: "name", x: this.box.right + 12, y: name.y - excess }, shortNameOf(name.series));
      label.style.setProperty("--colour", styleOf(name.series).colour);
    });
  }

  listen() {
    this.picked = null;
    const near = (event) => {
      const place = this.svg.getBoundingClientRect();
      const scale = this.width / place.width;
      const [px, py] = [(event.clientX - place.left) * scale, (event.clientY - place.top) * scale];
      let best = [Infinity];
      this.shown.forEach((series, s) => series.points.forEach((point, p) => {
        const distance = Math.hypot(this.x(point.x) - px, this.y(point.y) - py);
        if (distance < best[0]) best = [distance, s, p];
      }));
      if (best[0] < 80) this.pick(best[1], best[2]); else this.pick(null);
    };
    this.svg.addEventListener("pointermove", near);
    this.svg.addEventListener("pointerdown", near);
    this.svg.addEventListener("pointerleave", () => this.pick(null));
    this.svg.addEventListener("focus", () => { if (!this.picked && this.svg.matches(":focus-visible")) this.pick(0, this.shown[0].points.length - 1); });
    this.svg.addEventListener("blur", () => this.pick(null));
    this.svg.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Escape: null }[event.key];
      if (move === undefined) return;
      event.preventDefault();
      if (move === null) { this.pick(null); return; }
      const [s, p] = this.picked ?? [0, 0];
      const series = (s + move[0] + this.shown.length) % this.shown.length;
      this.pick(series, Math.min(Math.max(p + move[1], 0), this.shown[series].points.length - 1));
    });
  }

  pick(s, p) {
    this.svg.querySelector(".ring")?.remove();
    this.picked = s === null ? null : [s, p];
    this.groups.forEach((group, i) => group.classList.toggle("faded", s !== null && i !== s));
    this.tip.replaceChildren();
    if (s === null) return;
    const series = this.shown[s];
    const point = series.points[p];
    const [x, y] = [this.x(point.x), this.y(point.y)];
    add(this.svg, "circle", { class: "ring axis", cx: x, cy: y, r: 7, fill: "none" });
    add(this.tip, "b", {}, nameOf(series));
    for (const line of point.lines) add(this.tip, "span", {}, line);
    const [wide, high] = [this.tip.offsetWidth, this.tip.offsetHeight];
    const beside = x + wide + 16 < this.width ? x + 14 : x - wide - 14;
    const left = Math.max(0, beside);
    const apart = y > this.height / 2 ? y - high - 14 : y + 14; // if there is no room beside the point
    const top = Math.min(Math.max(beside < 0 ? apart : y - high / 2, 0), this.height - high);
    this.tip.style.transform = `translate(${left}px, ${top}px)`;
  }
}
