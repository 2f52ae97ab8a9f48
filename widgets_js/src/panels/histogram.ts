/** How strongly a latent is active where it is active: a histogram with a logarithmic count. */

import { h, listen, s } from "../core/dom";
import { brief, count, sig3 } from "../core/format";
import type { Readout } from "./shared";
import type { Card } from "./tables";

const HEIGHT = 104;
const LEFT = 38;
const BOTTOM = 20;
const TOP = 8;
const RIGHT = 8;

export function histogramPanel(root: HTMLElement, card: Card, readout: Readout): () => void {
  const bins = [...card.histogram];
  const holder = h("div", { class: "nbs-histogram" });
  holder.style.cssText = `height:${HEIGHT}px;margin-top:4px;max-width:760px`;
  root.append(holder, numbers(card, bins));
  const draw = () => holder.replaceChildren(picture(card, bins, holder.clientWidth || 520, readout));
  draw();
  if (typeof ResizeObserver === "undefined") return () => {};
  let width = holder.clientWidth;
  const observer = new ResizeObserver(() => {
    if (holder.clientWidth === width || holder.clientWidth === 0) return;
    width = holder.clientWidth;
    draw();
  });
  observer.observe(holder);
  return () => observer.disconnect();
}

/** Height of a bin, 0 … 1: logarithmic, and one row is already seen. */
export function logShare(value: number, largest: number): number {
  return value > 0 ? Math.log10(value + 1) / Math.log10(Math.max(largest, 1) + 1) : 0;
}

function picture(card: Card, bins: number[], width: number, readout: Readout): SVGSVGElement {
  const largest = Math.max(1, ...bins);
  const total = bins.reduce((sum, one) => sum + one, 0);
  const inner = { w: Math.max(10, width - LEFT - RIGHT), h: HEIGHT - TOP - BOTTOM };
  const svg = s("svg", {
    width,
    height: HEIGHT,
    viewBox: `0 0 ${width} ${HEIGHT}`,
    role: "img",
    "aria-label": `Histogram of ${count(total)} activations between 0 and ${sig3(card.histogram_max)}, logarithmic counts; most in a bin: ${count(largest)}.`,
  });
  const y = (value: number) => TOP + inner.h * (1 - logShare(value, largest));
  for (const tick of [1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7].filter((one) => one <= largest)) {
    if (y(tick) < TOP - 1) continue;
    svg.append(
      s("line", { class: "nbs-grid", x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) }),
      s("text", { class: "nbs-tick", x: LEFT - 6, y: y(tick) + 3.5, "text-anchor": "end" }, brief(tick)),
    );
  }
  const step = inner.w / bins.length;
  const edge = (bin: number) => sig3((card.histogram_max * bin) / bins.length);
  for (const [bin, value] of bins.entries()) {
    const bar = s("rect", {
      class: "nbs-bin",
      x: LEFT + bin * step + 0.5,
      width: Math.max(1, step - 1),
      y: y(value),
      height: TOP + inner.h - y(value),
      opacity: 0.8,
    });
    // The whole column answers to the pointer: bars of one row are too thin to hit.
    const hit = s("rect", { class: "nbs-hit", x: LEFT + bin * step, width: step, y: TOP, height: inner.h });
    listen(hit, "pointerenter", () =>
      readout([`${count(value)} ${value === 1 ? "row" : "rows"}`, `activation ${edge(bin)} to ${edge(bin + 1)}`]),
    );
    svg.append(bar, hit);
  }
  const base = TOP + inner.h + 0.5;
  svg.append(s("line", { class: "nbs-axis", x1: LEFT, x2: width - RIGHT, y1: base, y2: base }));
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    const anchor = share === 0 ? "start" : share === 1 ? "end" : "middle";
    const x = LEFT + share * inner.w;
    svg.append(
      s("line", { class: "nbs-axis", x1: x, x2: x, y1: base, y2: base + 3 }),
      s("text", { class: "nbs-tick", x, y: HEIGHT - 5, "text-anchor": anchor }, sig3(card.histogram_max * share)),
    );
  }
  return svg;
}

/** The same as a table, made when it is opened. */
function numbers(card: Card, bins: number[]): HTMLElement {
  const twin = h("details", { class: "nbs-twin" }, h("summary", {}, "Histogram as a table"));
  listen(
    twin,
    "toggle",
    () => {
      const edge = (bin: number) => sig3((card.histogram_max * bin) / bins.length);
      const body = h("tbody");
      for (const [bin, value] of bins.entries()) {
        if (value === 0) continue;
        body.append(h("tr", {}, h("td", {}, edge(bin)), h("td", {}, edge(bin + 1)), h("td", {}, count(value))));
      }
      const head = h("tr", {}, ...["from", "to", "rows"].map((text) => h("th", { scope: "col" }, text)));
      twin.append(h("table", {}, h("thead", {}, head), body));
    },
    { once: true },
  );
  return twin;
}
