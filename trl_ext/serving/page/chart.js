// Lines over policy steps, as SVG. The pointer or the arrow keys read the points of the first.
import { score, write } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const [LEFT, RIGHT, TOP, BOTTOM] = [40, 8, 8, 20];

export class Chart {
  /** section: has an <h2> and a .readout. range: what of the values is drawn at least, e.g. [0, 1]. */
  constructor(section, range) {
    this.name = section.querySelector("h2").textContent;
    this.readout = section.querySelector(".readout");
    this.range = range;
    this.lines = [[]];
    this.place = null; // the point that is read
    this.svg = svg("svg", { role: "img", tabindex: 0 });
    section.append(this.svg);
    this.svg.addEventListener("pointermove", (event) => this.read(this.nearest(event.offsetX)));
    for (const end of ["pointerleave", "blur"]) this.svg.addEventListener(end, () => this.read(null));
    this.svg.addEventListener("keydown", (event) => this.move(event));
    new ResizeObserver(() => this.draw()).observe(this.svg);
  }

  /** lines: the trained one, then others, drawn dashed; each [[step, value], ...] in the order of steps. */
  update(lines) {
    if (JSON.stringify(lines) === JSON.stringify(this.lines) && this.svg.hasChildNodes()) return;
    this.lines = lines;
    this.read(this.place);
  }

  read(place) {
    const last = this.lines[0].length - 1;
    this.place = place === null || last < 0 ? null : Math.min(place, last);
    this.readout.ariaLive = this.place === null ? "off" : "polite"; // spoken to who reads, not at each update
    this.draw();
  }

  move(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    this.read(Math.max(0, (this.place ?? this.lines[0].length) + by));
  }

  nearest(x) {
    const distances = this.lines[0].map(([step]) => Math.abs(this.x(step) - x));
    return distances.indexOf(Math.min(...distances));
  }

  draw() {
    const { width, height } = this.svg.getBoundingClientRect();
    if (!width) return;
    const points = this.lines.flat();
    const [steps, values] = [points.map(([step]) => step), points.map(([, value]) => value)];
    const ticks = roundTicks(Math.min(this.range[0], ...values), Math.max(this.range[1], ...values), 4);
    const [low, high] = [ticks[0], ticks.at(-1)];
    const [first, last] = points.length ? [Math.min(...steps), Math.max(...steps)] : [0, 0];
    this.x = (step) => LEFT + ((step - first) / (last - first || 1)) * (width - LEFT - RIGHT);
    const y = (value) => TOP + ((high - value) / (high - low)) * (height - TOP - BOTTOM);

    this.svg.replaceChildren();
    for (const tick of ticks) {
      this.add("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) });
      this.add("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, score(tick));
    }
    if (!points.length) {
      this.add("text", { x: (LEFT + width) / 2, y: height / 2, "text-anchor": "middle" }, "no rollout yet");
      this.svg.setAttribute("aria-label", `${this.name}: no rollout yet`);
      write(this.readout, "");
      return;
    }
    this.add("text", { x: LEFT, y: height - 4 }, `step ${first}`);
    if (last > first) this.add("text", { x: width - RIGHT, y: height - 4, "text-anchor": "end" }, `step ${last}`);
    this.lines.forEach((line, place) => {
      if (!line.length) return;
      const way = line.map(([step, value]) => `${this.x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("L");
      // a line of one point is a dot
      this.add("path", { d: `M${way}${line.length > 1 ? "" : "h0"}`, class: place ? "other" : "" });
    });
    const read = this.lines.findIndex((line) => line.length);
    const [step, value] = this.lines[read][this.place ?? this.lines[read].length - 1];
    if (this.place !== null) {
      this.add("line", { class: "cursor", x1: this.x(step), x2: this.x(step), y1: TOP, y2: height - BOTTOM });
    }
    this.add("circle", { cx: this.x(step), cy: y(value), r: 3 });
    const others = this.lines.slice(1).some((line) => line.length);
    write(this.readout, `${others ? "dashed: evaluation · " : ""}step ${step}: ${score(value)}`);
    const span = `${score(Math.min(...values))} to ${score(Math.max(...values))}`;
    this.svg.setAttribute("aria-label", `${this.name} by step, ${span}; step ${step}: ${score(value)}. Arrow keys read the points.`);
  }

  add(tag, attributes, text = "") {
    const node = svg(tag, attributes);
    node.textContent = text;
    this.svg.append(node);
  }
}

function svg(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

/** Round numbers, about `wanted` spaces between them, around a range. */
function roundTicks(low, high, wanted) {
  const rough = (high - low || 1) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((step) => step >= rough * 0.999);
  const [from, to] = [Math.floor(low / size + 1e-9), Math.ceil(high / size - 1e-9)];
  return Array.from({ length: Math.max(to, from + 1) - from + 1 }, (_, place) => (from + place) * size);
}
