/** The examples of a card: the strongest ones, or a sample of every interval; with the controls that belong to them. */

import { gradient } from "../core/colour";
import { h, listen } from "../core/dom";
import { count, percent, sig3 } from "../core/format";
import { imagesPanel } from "./images";
import type { Panel, Readout, View } from "./shared";
import type { Card, Example } from "./tables";
import { textsPanel } from "./texts";

const INTERVALS = 10;
/** Texts of a part that are drawn at first: a card stays quick to draw, and the next part is near. */
const FIRST_TOP = 6;
const FIRST_OF_INTERVAL = 2;

export function examplesPanel(root: HTMLElement, panel: Panel, card: Card, readout: Readout): () => void {
  if (panel.about.modality === "text") return textSections(root, panel, card, readout);
  const { state } = panel;
  const title = h("h4");
  const bar = h("div", { class: "nbs-controls" });
  const body = h("div", { class: "nbs-examples" });
  const stops: (() => void)[] = [];
  const line = h("div", { class: "nbs-line" }, title, choice(panel, stops));
  root.append(h("section", { class: "nbs-section" }, line, bar, body));
  const hasMap = card.examples.some(({ map }) => map.length > 0);
  bar.hidden = !hasMap;
  let clear = () => {};
  stops.push(
    hasMap ? fillControls(bar, panel, card) : () => {},
    state.on(["examples"], () => {
      clear();
      body.replaceChildren();
      const top = state.get("examples") === "top";
      title.textContent = top ? "Strongest examples" : "Examples by strength";
      clear = top ? drawTop(body, panel, card, readout) : drawIntervals(body, panel, card, readout);
    }),
    state.on(["heat", "opacity", "held"], () => {
      const shown = state.get("heat") && !state.get("held");
      body.style.setProperty("--heat", String(shown ? state.get("opacity") : 0));
    }),
  );
  return () => {
    for (const stop of stops) stop();
    clear();
  };
}

/** Texts take little room: the strongest and the sample stand below each other, and the choice leads to one of them. */
function textSections(root: HTMLElement, panel: Panel, card: Card, readout: Readout): () => void {
  const { about, state } = panel;
  const bar = h("div", { class: "nbs-controls", hidden: about.pooled });
  const [top, sample] = [h("div", { class: "nbs-examples" }), h("div")];
  const stops: (() => void)[] = [];
  const line = h("div", { class: "nbs-line" }, h("h4", {}, "Strongest examples"), choice(panel, stops));
  const parts = {
    top: h("section", { class: "nbs-section" }, line, bar, top),
    intervals: h("section", { class: "nbs-section" }, h("h4", {}, "Sampled by strength"), sample),
  };
  root.append(parts.top, parts.intervals);
  let drawn = false;
  stops.push(
    about.pooled ? () => {} : fillControls(bar, panel, card),
    drawTop(top, panel, card, readout),
    drawIntervals(sample, panel, card, readout),
    state.on(["examples"], () => {
      const wanted = state.get("examples");
      const scroller = root.closest(".nbs-scroll");
      // The card begins at its top; only a choice moves it.
      if (scroller && (drawn || wanted !== "top")) {
        scroller.scrollTop += parts[wanted].getBoundingClientRect().top - scroller.getBoundingClientRect().top;
      }
      drawn = true;
    }),
  );
  return () => {
    for (const stop of stops) stop();
  };
}

function drawTop(body: HTMLElement, panel: Panel, card: Card, readout: Readout): () => void {
  const top = card.examples.filter(({ interval }) => interval < 0);
  const rows = panel.latents.active_rows[card.latent] ?? 0;
  body.append(note(`Top ${count(top.length)} of ${count(rows)} active ${rows === 1 ? "row" : "rows"}.`, panel, card));
  return drawExamples(body, panel, card, top, readout, FIRST_TOP);
}

function drawIntervals(body: HTMLElement, panel: Panel, card: Card, readout: Readout): () => void {
  const max = panel.latents.max[card.latent] ?? card.scale;
  body.append(note(`A random sample of each tenth between 0 and the largest activation, ${sig3(max)}.`, panel, card));
  const below = sharesBelow(card);
  const stops: (() => void)[] = [];
  for (let interval = INTERVALS - 1; interval >= 0; interval -= 1) {
    const found = card.examples.filter((example) => example.interval === interval);
    const range = `${sig3((max * interval) / INTERVALS)} – ${sig3((max * (interval + 1)) / INTERVALS)}`;
    const shown = h("div", { class: "nbs-interval-body" });
    const share = `${interval / INTERVALS} – ${(interval + 1) / INTERVALS} of max`;
    const label = h("div", {}, h("b", {}, range), h("br"), h("span", {}, share));
    const [low, high] = [interval, interval + 1].map((edge) => below((max * edge) / INTERVALS));
    if (low !== undefined && high !== undefined) {
      const title = "Which part of the active rows lies here, by the histogram";
      label.append(h("br"), h("span", { title }, `quantile ${sig3(low)} – ${sig3(high)}`));
      label.title = `${percent(high - low)} of the active rows`;
    }
    body.append(h("div", { class: "nbs-interval" }, label, shown));
    if (found.length) stops.push(drawExamples(shown, panel, card, found, readout, FIRST_OF_INTERVAL));
    else shown.append(h("p", { class: "nbs-none" }, "none"));
  }
  return () => {
    for (const stop of stops) stop();
  };
}

/** Share of the active rows whose activation is below a value, from the histogram; undefined where it is empty. */
export function sharesBelow({ histogram, histogram_max }: Card): (value: number) => number | undefined {
  const ends = [0];
  for (const rows of histogram) ends.push((ends.at(-1) as number) + rows);
  const total = ends.at(-1) as number;
  return (value) => {
    if (!total || !(histogram_max > 0)) return undefined;
    const at = Math.min(histogram.length, Math.max(0, (value / histogram_max) * histogram.length));
    const bin = Math.min(histogram.length - 1, Math.floor(at));
    return ((ends[bin] as number) + (at - bin) * (histogram[bin] as number)) / total;
  };
}

function drawExamples(
  body: HTMLElement,
  panel: Panel,
  card: Card,
  found: Example[],
  readout: Readout,
  first: number,
): () => void {
  if (panel.about.modality === "image") return imagesPanel(body, panel, card, found, readout);
  const stops = [textsPanel(body, panel, card, found.slice(0, first), readout)];
  const rest = found.slice(first);
  if (rest.length) {
    const more = h("button", { type: "button", class: "nbs-button" }, `${count(rest.length)} more`);
    listen(more, "click", () => {
      more.remove();
      stops.push(textsPanel(body, panel, card, rest, readout));
      body.lastElementChild?.querySelector<HTMLElement>(".nbs-tokens")?.focus();
    });
    body.append(more);
  }
  return () => {
    for (const stop of stops) stop();
  };
}

function note(text: string, { state }: Panel, card: Card): HTMLElement {
  const cut = card.partial && state.get("kernel") === "none";
  return h(
    "p",
    { class: "nbs-note" },
    cut ? `${text} Shortened in this saved view; a running kernel shows more.` : text,
  );
}

/** Two or more buttons of which one is pressed; they follow the state until `stops` are run. */
function segments<K extends "examples" | "scale">(
  { state }: Panel,
  key: K,
  label: string,
  options: [View[K], string, string][],
  stops: (() => void)[],
): HTMLElement {
  const group = h("div", { class: "nbs-segments", role: "group", "aria-label": label });
  for (const [value, text, title] of options) {
    const button = h("button", { type: "button", title }, text);
    listen(button, "click", () => state.set(key, value));
    group.append(button);
  }
  const press = () => {
    for (const [number, [value]] of options.entries()) {
      group.children[number]?.setAttribute("aria-pressed", String(state.get(key) === value));
    }
  };
  stops.push(state.on([key], press));
  return group;
}

function choice(panel: Panel, stops: (() => void)[]): HTMLElement {
  const options: [View["examples"], string, string][] = [
    ["top", "Strongest", "The rows with the largest activation"],
    ["intervals", "All strengths", "A sample from weak to strong"],
  ];
  return segments(panel, "examples", "Which examples", options, stops);
}

/** Heat map and colour controls; the returned function stops the legend from following the state. */
function fillControls(bar: HTMLElement, panel: Panel, card: Card): () => void {
  const { state, about } = panel;
  if (about.modality === "image") {
    const heat = h("input", { type: "checkbox" });
    heat.checked = state.get("heat");
    listen(heat, "change", () => state.set("heat", heat.checked));
    const opacity = h("input", {
      type: "range",
      min: 0.1,
      max: 1,
      step: 0.05,
      "aria-label": "Opacity of the heat map",
    });
    opacity.value = String(state.get("opacity"));
    listen(opacity, "input", () => state.set("opacity", Number(opacity.value)));
    const title = "Hold h to see the pictures alone";
    bar.append(h("label", { class: "nbs-check", title }, heat, "Heat map"), opacity);
  }
  const end = h("span");
  const stops: (() => void)[] = [];
  const options: [View["scale"], string, string][] = [
    ["card", "One scale", "Colours mean the same in all examples of this latent"],
    ["example", "Each its own", "Colours run to each example's own largest activation"],
  ];
  bar.append(legend(panel, end), segments(panel, "scale", "Colours run to the largest activation of", options, stops));
  stops.push(
    state.on(["scale"], () => {
      end.textContent = state.get("scale") === "card" ? sig3(card.scale) : "own max";
    }),
  );
  return () => {
    for (const stop of stops) stop();
  };
}

function legend({ about }: Panel, end: HTMLElement): HTMLElement {
  const ramp = h("i", { class: about.modality === "text" ? "nbs-ramp nbs-ramp-text" : "nbs-ramp" });
  ramp.style.cssText = "height:9px;border-radius:2px;forced-color-adjust:none";
  if (about.modality === "image") ramp.style.backgroundImage = gradient();
  return h("span", { class: "nbs-legend" }, h("span", {}, "0"), ramp, end);
}
