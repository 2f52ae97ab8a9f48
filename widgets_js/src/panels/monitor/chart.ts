/** One chart of lines, its crosshair, and a sentence for those who do not see it. */

import { h, s } from "../../core/dom";
import { brief, sig3 } from "../../core/format";
import { scale, ticks } from "../bias/curve";
import { axis as exact } from "../bias/shared";
import { colour, dash } from "./shared";

const HEIGHT = 150;
const [LEFT, RIGHT, TOP, BOTTOM] = [44, 10, 8, 20];

export interface Line {
  name: string;
  /** Place among the colours. */
  colour: number;
  x: number[];
  y: number[];
}

export interface Chart {
  title: string;
  /** What a value is followed by, such as " %". */
  unit?: string;
  log?: boolean;
  lines: Line[];
  xText(x: number): string;
}

/** A title with the values at the cursor (or the last ones), above the drawing. */
export class LineChart {
  readonly element: HTMLElement;
  readonly #values = h("span", { class: "nbs-values" });
  readonly #title = h("h4");
  readonly #holder = h("div", { class: "nbs-plot" });
  #chart: Chart | undefined;
  #cross: SVGElement | undefined;
  #at: (x: number) => number = () => 0;
  #range: [number, number] = [0, 1];

  constructor(private readonly point: (x: number | undefined) => void) {
    this.#holder.style.height = `${HEIGHT}px`;
    this.element = h(
      "section",
      { class: "nbs-chart" },
      h("div", { class: "nbs-caption" }, this.#title, this.#values),
      this.#holder,
    );
    this.#holder.addEventListener("pointermove", (event) => this.point(this.#valueAt(event.clientX)));
    this.#holder.addEventListener("pointerleave", () => this.point(undefined));
  }

  draw(chart: Chart): void {
    this.#chart = chart;
    this.#title.textContent = chart.title;
    this.#holder.replaceChildren(this.#picture(chart, this.#holder.clientWidth || 340));
    this.mark(undefined);
  }

  /** Show the values at `x`; undefined: the last ones. */
  mark(x: number | undefined): void {
    const chart = this.#chart;
    if (!chart) return;
    const place = x === undefined ? -10 : this.#at(x);
    this.#cross?.setAttribute("x1", String(place));
    this.#cross?.setAttribute("x2", String(place));
    const shown = chart.lines.flatMap((line) => {
      const at = x === undefined ? line.x.length - 1 : nearest(line.x, x);
      const value = line.y[at];
      if (value === undefined || Number.isNaN(value)) return [];
      return [h("span", { class: colour(line.colour), title: line.name }, `${sig3(value)}${chart.unit ?? ""}`)];
    });
    if (x !== undefined) shown.unshift(h("span", {}, chart.xText(x)));
    this.#values.replaceChildren(...shown);
  }

  #valueAt(clientX: number): number {
    const box = this.#holder.getBoundingClientRect();
    const share = (clientX - box.left - LEFT) / Math.max(1, box.width - LEFT - RIGHT);
    return this.#range[0] + Math.min(1, Math.max(0, share)) * (this.#range[1] - this.#range[0]);
  }

  #picture(chart: Chart, width: number): SVGSVGElement {
    const good = (value: number) => Number.isFinite(value) && (!chart.log || value > 0);
    const values = chart.lines.flatMap(({ y }) => y.filter(good));
    const xs = chart.lines.flatMap(({ x }) => [x[0] ?? 0, x.at(-1) ?? 0]);
    this.#range = [Math.min(0, ...xs), Math.max(1e-9, ...xs)];
    const svg = s("svg", {
      width,
      height: HEIGHT,
      viewBox: `0 0 ${width} ${HEIGHT}`,
      role: "img",
      "aria-label": spoken(chart),
    });
    if (!values.length) {
      svg.append(s("text", { class: "nbs-tick", x: LEFT, y: HEIGHT / 2 }, "no line of the log yet"));
      return svg;
    }
    const put = chart.log ? Math.log10 : (value: number) => value;
    const ends = [least(values), most(values)].map(put) as [number, number];
    const [low, high] = chart.log ? scale(...ends) : fromZero(...ends);
    const y = (value: number) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - (put(value) - low) / (high - low));
    const [from, to] = this.#range;
    this.#at = (value) => LEFT + ((value - from) / (to - from)) * (width - LEFT - RIGHT);
    for (const tick of chart.log ? logTicks(low, high) : ticks(low, high)) {
      svg.append(
        s("line", {
          class: tick === 0 ? "nbs-axis" : "nbs-grid",
          x1: LEFT,
          x2: width - RIGHT,
          y1: y(tick),
          y2: y(tick),
        }),
        s("text", { class: "nbs-tick", x: LEFT - 5, y: y(tick) + 4, "text-anchor": "end" }, label(tick)),
      );
    }
    const bottom = { class: "nbs-tick", y: HEIGHT - 5 };
    svg.append(
      s("text", { ...bottom, x: LEFT }, chart.xText(from)),
      s("text", { ...bottom, x: width - RIGHT, "text-anchor": "end" }, chart.xText(to)),
    );
    for (const line of chart.lines) {
      svg.append(
        s("path", {
          class: colour(line.colour),
          d: path(line, this.#at, y, good, width),
          fill: "none",
          stroke: "currentColor",
          "stroke-width": 1.8,
          "stroke-dasharray": dash(line.colour) || undefined,
          "stroke-linejoin": "round",
        }),
      );
    }
    this.#cross = s("line", { class: "nbs-axis", x1: -10, x2: -10, y1: TOP, y2: HEIGHT - BOTTOM });
    svg.append(this.#cross);
    return svg;
  }
}

/** Ends of a linear axis, which holds 0; what is 0 throughout has an axis all the same. */
function fromZero(low: number, high: number): [number, number] {
  const [least, most] = [Math.min(0, low), Math.max(0, high)];
  return most > least ? [least * 1.05, most * 1.05] : [0, 1];
}

/** A path; where many points share a pixel, the smallest and the largest of them. */
function path(
  { x, y }: Line,
  px: (value: number) => number,
  py: (value: number) => number,
  good: (value: number) => boolean,
  width: number,
): string {
  const each = Math.max(1, Math.floor(x.length / width));
  let d = "";
  let open = false;
  for (let start = 0; start < x.length; start += each) {
    let [low, high] = [-1, -1];
    for (let at = start; at < Math.min(start + each, x.length); at += 1) {
      if (!good(y[at] as number)) continue;
      if (low < 0 || (y[at] as number) < (y[low] as number)) low = at;
      if (high < 0 || (y[at] as number) > (y[high] as number)) high = at;
    }
    if (low < 0) {
      open = false;
      continue;
    }
    for (const at of low === high ? [low] : [Math.min(low, high), Math.max(low, high)]) {
      d += `${open ? "L" : "M"}${px(x[at] as number).toFixed(1)} ${py(y[at] as number).toFixed(1)}`;
      open = true;
    }
  }
  // A path of one point is not drawn: a dot stands for it.
  return d.includes("L") || !d ? d : `${d}h.1`;
}

/** Position of the value nearest to `x` in ascending `values`. */
export function nearest(values: number[], x: number): number {
  let [low, high] = [0, values.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((values[middle] as number) < x) low = middle + 1;
    else high = middle;
  }
  return low > 0 && x - (values[low - 1] as number) < (values[low] as number) - x ? low - 1 : low;
}

/** Powers of ten between the ends (of logarithms), with 2 and 5 where there are few. */
export function logTicks(low: number, high: number): number[] {
  const found: number[] = [];
  const factors = high - low > 3 ? [1] : high - low > 1.2 ? [1, 3] : [1, 1.5, 2, 3, 5, 7];
  for (let power = Math.floor(low); power <= high; power += 1) {
    for (const factor of factors) {
      const tick = Number((factor * 10 ** power).toPrecision(3));
      if (Math.log10(tick) >= low && Math.log10(tick) <= high) found.push(tick);
    }
  }
  return found;
}

function label(tick: number): string {
  const size = Math.abs(tick);
  if (size >= 1e4) return brief(tick);
  return size > 0 && size < 1e-3 ? tick.toExponential(0).replace(/-/g, "−") : exact(tick);
}

function spoken({ title, unit, lines }: Chart): string {
  const said = lines.map((line) => {
    const known = line.y.filter((value) => !Number.isNaN(value));
    if (!known.length) return `${line.name}: nothing yet`;
    return `${line.name}: from ${sig3(known[0] as number)} to ${sig3(known.at(-1) as number)}${unit ?? ""}`;
  });
  return `${title}. ${said.join("; ")}.`;
}

/** Spreading thousands of values into Math.min would fill the stack. */
function least(values: number[]): number {
  return values.reduce((one, other) => Math.min(one, other));
}

function most(values: number[]): number {
  return values.reduce((one, other) => Math.max(one, other));
}
