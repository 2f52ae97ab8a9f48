/** The counterfactual curve: the classifier's probability against the activation that the concept is set to. */

import { attr, h, listen, s } from "../../core/dom";
import { count, sig3, visible } from "../../core/format";
import { axis, controls, interval, named, none, type Panel, roundUp, tableOf, whisker } from "./shared";
import { askMissing, strip } from "./strip";
import type { Curve, Details, Effect, ImageCurve } from "./tables";

const HEIGHT = 210;
const [LEFT, RIGHT, TOP, BOTTOM] = [46, 10, 10, 34];
const REACH = 24; // pixels between the pointer and a curve that it still means

export function curvePanel(root: HTMLElement, panel: Panel, concept: number, details: Details): () => void {
  const { report, state } = panel;
  const curves = details.curves(concept);
  const effects = report.effects("reliance").filter((one) => one.concept === concept);
  if (!curves.length && !effects.length) {
    root.append(none("No classifier was measured: give ns.bias_report a classifier."));
    return () => {};
  }
  let stops: (() => void)[] = [];
  const clear = () => {
    for (const stop of stops) stop();
    stops = [];
  };
  const stopOutput = state.on(["output"], () => {
    clear();
    const mine = (one: { output: number }) => one.output === state.get("output");
    const curve = curves.find(mine) ?? curves[0];
    const output = curve?.output ?? state.get("output");
    const effect = effects.find(({ side }) => side === output);
    root.replaceChildren();
    if (effect) root.append(number(panel, effect));
    if (!curve) return;
    const images = details.imageCurves(concept, output);
    stops.push(chart(root, panel, curve, images));
    const kept = report.about.images;
    if (kept !== null && details === panel.source.saved && state.get("kernel") === "none") {
      root.append(none(`This saved view keeps the curves and examples of ${kept} inputs for each concept and group.`));
    }
  });
  return () => {
    stopOutput();
    clear();
  };
}

/** The reliance with the band of matched latents, as a picture and as a sentence. */
function number({ report, state, source }: Panel, one: Effect): HTMLElement {
  const band = controls(one);
  const domain = roundUp(Math.max(...[one.low, one.high, ...band].filter(Number.isFinite).map(Math.abs), 0));
  const verdict = one.flagged ? "" : " Not distinguishable from matched latents.";
  return h(
    "div",
    { class: "nbs-curve" },
    whisker({ value: one.effect, low: one.low, high: one.high }, [-domain, domain], {
      band,
      at: 0,
      hollow: !one.flagged,
    }),
    h("p", {}, named(relianceSentence({ report, state, source }, one) + verdict)),
  );
}

/** What the classifier does with the concept, in one sentence. */
function relianceSentence(panel: Panel, one: Effect): string {
  const { report } = panel;
  const of = (name: string) => one.table.numbers(name)[one.row] ?? Number.NaN;
  const [low, high] = controls(one);
  return (
    `Set from ${sig3(of("low"))} to ${sig3(of("high"))}, it changes p(${report.label(one.side)}) by ` +
    `${interval({ value: one.effect, low: one.low, high: one.high })}, n = ${count(one.n)}. ` +
    `${count(of("controls"))} matched latents: ${sig3(low)} … ${sig3(high)}. ` +
    `Reconstruction alone: ${sig3(of("reconstruction"))}, not contained.`
  );
}

/** Chart, the strip of its images, and the table twin. */
function chart(root: HTMLElement, panel: Panel, curve: Curve, images: ImageCurve[]): () => void {
  const holder = h("div", { class: "nbs-curve" });
  holder.style.height = `${HEIGHT}px`;
  const readout = h("p", { class: "nbs-note", role: "status" });
  const label = panel.report.label(curve.output);
  const sign = (name: string, text: string) => h("span", { class: "nbs-legend" }, h("i", { class: name }), text);
  const legend = h(
    "div",
    { class: "nbs-controls" },
    sign("nbs-mean", "mean with 95 % interval"),
    sign("nbs-band", "matched latents"),
    sign("nbs-one", "one input"),
  );
  let marked = -1;
  const describe = () => {
    const one = images[marked];
    if (!one) {
      readout.textContent = images.length ? "Point at a thin curve, or choose an input below." : "";
      return;
    }
    const [first, last] = [one.probability[0] ?? Number.NaN, one.probability.at(-1) ?? Number.NaN];
    const key = visible(panel.source.inputs.get(one.input).key);
    readout.textContent = `${key}: p(${visible(label)}) from ${sig3(first)} to ${sig3(last)}`;
  };
  const mark = (at: number) => {
    if (at === marked) return;
    marked = at;
    for (const [place, line] of holder.querySelectorAll(".nbs-one").entries()) {
      emphasise(line, place === at);
    }
    for (const [place, tile] of pictures.element.querySelectorAll(".nbs-tile").entries()) {
      tile.classList.toggle("nbs-marked", place === at);
    }
    describe();
  };
  const open = (at: number) => {
    const one = images[at];
    if (!one) return;
    mark(at);
    const steps = one.probability.map((p, step) => `${sig3(one.value[step] ?? 0)} → ${sig3(p)}`).join(", ");
    const said = `${sig3(one.probability[0] ?? 0)} → ${sig3(one.probability.at(-1) ?? 0)}`;
    const key = panel.source.inputs.get(one.input).key;
    panel.state.set("behind", {
      title: `${key}: p(${label}) when the concept is set`,
      strips: [{ name: steps, inputs: [{ input: one.input, said }] }],
    });
  };
  const change = (one: ImageCurve) => (one.probability.at(-1) ?? 0) - (one.probability[0] ?? 0);
  const tiles = images.map((one) => ({ input: one.input, said: signed(change(one)) }));
  const pictures = strip(panel, tiles, "Inputs of the thin curves", open);
  listen(pictures.element, "focusin", (event) => mark(placeOf(pictures.element, event)));
  listen(pictures.element, "pointerover", (event) => mark(placeOf(pictures.element, event)));
  const draw = () => {
    const size = { width: holder.clientWidth || 520, marked };
    holder.replaceChildren(picture(curve, images, label, size, mark, open));
  };
  root.append(holder, legend, readout);
  if (images.length) root.append(pictures.element);
  root.append(twin(panel, curve, images));
  draw();
  describe();
  const stopMissing = askMissing(
    panel,
    images.map(({ input }) => input),
    () => pictures.fill(),
  );
  let width = holder.clientWidth;
  const observer =
    typeof ResizeObserver === "undefined"
      ? undefined
      : new ResizeObserver(() => {
          if (holder.clientWidth === width || holder.clientWidth === 0) return;
          width = holder.clientWidth;
          draw();
        });
  observer?.observe(holder);
  return () => {
    observer?.disconnect();
    stopMissing();
    pictures.stop();
  };
}

/** A thin line, or the one that is meant. */
function emphasise<E extends Element>(line: E, marked: boolean): E {
  line.classList.toggle("nbs-marked", marked);
  attr(line, "stroke-width", marked ? "2.5" : "1");
  attr(line, "opacity", marked ? "1" : "0.55");
  return line;
}

function placeOf(root: HTMLElement, event: Event): number {
  const tile = (event.target as Element).closest(".nbs-tile");
  return tile ? [...root.querySelectorAll(".nbs-tile")].indexOf(tile) : -1;
}

export function signed(number: number): string {
  return `${number > 0 ? "+" : ""}${sig3(number)}`;
}

function picture(
  curve: Curve,
  images: ImageCurve[],
  label: string,
  { width, marked }: { width: number; marked: number },
  mark: (at: number) => void,
  open: (at: number) => void,
): SVGSVGElement {
  // Single inputs are drawn as changes, like the mean: what they start from differs.
  const lines = images.map(({ value, probability }) => ({
    x: [...value],
    y: probability.map((one) => one - (probability[0] ?? 0)),
  }));
  const xMax = Math.max(...curve.value, ...lines.flatMap(({ x }) => x), 1e-9);
  const ends = [curve.ci_low, curve.ci_high, curve.control_low, curve.control_high, ...lines.map(({ y }) => y)];
  const finite = ends.flatMap((one) => [...one]).filter(Number.isFinite);
  const [yMin, yMax] = scale(Math.min(0, ...finite), Math.max(0, ...finite));
  const inner = { w: Math.max(10, width - LEFT - RIGHT), h: HEIGHT - TOP - BOTTOM };
  const x = (value: number) => LEFT + (value / xMax) * inner.w;
  const y = (value: number) => TOP + inner.h * (1 - (value - yMin) / (yMax - yMin));
  const path = (xs: ArrayLike<number>, ys: ArrayLike<number>) =>
    Array.from(xs, (one, i) => `${i ? "L" : "M"}${x(one).toFixed(1)} ${y(ys[i] ?? 0).toFixed(1)}`).join("");
  const area = (low: ArrayLike<number>, high: ArrayLike<number>) =>
    `${path(curve.value, low)}${path([...curve.value].reverse(), Array.from(high).reverse()).replace("M", "L")}Z`;
  const last = curve.mean.length - 1;
  const svg = s("svg", {
    width,
    height: HEIGHT,
    viewBox: `0 0 ${width} ${HEIGHT}`,
    role: "img",
    "aria-label": visible(
      `Change of p(${label}) against the activation that the concept is set to, 0 to ${sig3(xMax)}: mean ` +
        `${interval({ value: curve.mean[last] ?? 0, low: curve.ci_low[last] ?? 0, high: curve.ci_high[last] ?? 0 })} at the end; ` +
        `${count(images.length)} single inputs.`,
    ),
  });
  for (const tick of ticks(yMin, yMax)) {
    svg.append(
      s("line", { class: tick === 0 ? "nbs-axis" : "nbs-grid", x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) }),
      s("text", { class: "nbs-tick", x: LEFT - 6, y: y(tick) + 3.5, "text-anchor": "end" }, axis(tick)),
    );
  }
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    const anchor = share === 0 ? "start" : share === 1 ? "end" : "middle";
    svg.append(
      s("text", { class: "nbs-tick", x: x(xMax * share), y: HEIGHT - 19, "text-anchor": anchor }, sig3(xMax * share)),
    );
  }
  const mid = LEFT + inner.w / 2;
  svg.append(
    s(
      "text",
      { class: "nbs-tick", x: mid, y: HEIGHT - 5, "text-anchor": "middle" },
      "activation that the concept is set to",
    ),
    s("path", {
      class: "nbs-band-area",
      fill: "currentColor",
      "fill-opacity": 0.17,
      d: area(curve.control_low, curve.control_high),
    }),
    ...lines.map((one, at) =>
      emphasise(
        s("path", { class: "nbs-one", fill: "none", stroke: "currentColor", d: path(one.x, one.y) }),
        at === marked,
      ),
    ),
    s("path", { class: "nbs-mean", fill: "currentColor", "fill-opacity": 0.28, d: area(curve.ci_low, curve.ci_high) }),
    s("path", {
      class: "nbs-mean",
      fill: "none",
      stroke: "currentColor",
      "stroke-width": 2.5,
      d: path(curve.value, curve.mean),
    }),
  );
  /** The curve nearest to the pointer, or -1. */
  const nearest = (event: PointerEvent | MouseEvent) => {
    const box = svg.getBoundingClientRect();
    const at = { x: event.clientX - box.left, y: event.clientY - box.top };
    let [best, distance] = [-1, REACH];
    for (const [place, one] of lines.entries()) {
      for (let i = 1; i < one.x.length; i += 1) {
        const [x0, x1] = [x(one.x[i - 1] ?? 0), x(one.x[i] ?? 0)];
        if (at.x < x0 || at.x > x1) continue;
        const part = x1 > x0 ? (at.x - x0) / (x1 - x0) : 0;
        const away = Math.abs(y((one.y[i - 1] ?? 0) * (1 - part) + (one.y[i] ?? 0) * part) - at.y);
        if (away < distance) [best, distance] = [place, away];
      }
    }
    return best;
  };
  listen(svg, "pointermove", (event) => mark(nearest(event)));
  listen(svg, "pointerleave", () => mark(-1));
  listen(svg, "click", (event) => open(nearest(event)));
  return svg;
}

/** Ends of an axis a little beyond what it shows. */
export function scale(low: number, high: number): [number, number] {
  const room = 0.05 * Math.max(high - low, 1e-6);
  return [low - room, high + room];
}

/** Round numbers between the ends, about five. */
export function ticks(low: number, high: number): number[] {
  const step = roundUp((high - low) / 5);
  const first = Math.ceil(low / step - 1e-6);
  const found: number[] = [];
  for (let at = first; at * step <= high + step * 1e-6; at += 1) found.push(at === 0 ? 0 : at * step);
  return found;
}

/** The chart as two tables, made when they are opened. */
function twin({ report, source }: Panel, curve: Curve, images: ImageCurve[]): HTMLElement {
  const details = h("details", {}, h("summary", {}, "Curves as a table"));
  const fill = () => {
    const lines = Array.from(curve.value, (value, i) => [
      sig3(value),
      interval({ value: curve.mean[i] ?? 0, low: curve.ci_low[i] ?? 0, high: curve.ci_high[i] ?? 0 }),
      `${sig3(curve.control_low[i] ?? 0)} … ${sig3(curve.control_high[i] ?? 0)}`,
    ]);
    const head = ["activation", `change of p(${visible(report.label(curve.output))}), mean [95 %]`, "matched latents"];
    details.append(tableOf("Mean curve", head, lines));
    const [first] = images;
    if (!first) return;
    const single = images.map((one) => [named(source.inputs.get(one.input).key), ...one.probability.map(sig3)]);
    details.append(tableOf("Curves of single inputs", ["p at activation", ...Array.from(first.value, sig3)], single));
  };
  listen(details, "toggle", fill, { once: true });
  return details;
}
