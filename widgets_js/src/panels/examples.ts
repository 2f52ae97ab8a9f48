/** The examples of a card: the strongest ones, or a sample of every interval; with the controls that belong to them. */

import { gradient } from "../core/colour";
import { h } from "../core/dom";
import { count, sig3 } from "../core/format";
import { imagesPanel } from "./images";
import type { Panel, Readout, View } from "./shared";
import type { Card, Example } from "./tables";
import { textsPanel } from "./texts";

const INTERVALS = 10;

export function examplesPanel(root: HTMLElement, panel: Panel, card: Card, readout: Readout): () => void {
  const { about, state } = panel;
  const title = h("h4");
  const bar = h("div", { class: "nbs-controls" });
  const body = h("div", { class: "nbs-examples" });
  root.append(h("section", { class: "nbs-section" }, h("div", { class: "nbs-line" }, title, choice(panel)), bar, body));
  const hasMap = about.modality === "text" ? !about.pooled : card.examples.some(({ map }) => map.length > 0);
  bar.hidden = !hasMap;
  let clear = () => {};
  const stops = [
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
  ];
  return () => {
    for (const stop of stops) stop();
    clear();
  };
}

function drawTop(body: HTMLElement, panel: Panel, card: Card, readout: Readout): () => void {
  const top = card.examples.filter(({ interval }) => interval < 0);
  const rows = panel.latents.active_rows[card.latent] ?? 0;
  body.append(note(`Top ${count(top.length)} of ${count(rows)} active ${rows === 1 ? "row" : "rows"}.`, panel, card));
  return drawExamples(body, panel, card, top, readout);
}

function drawIntervals(body: HTMLElement, panel: Panel, card: Card, readout: Readout): () => void {
  const max = panel.latents.max[card.latent] ?? card.scale;
  body.append(note(`A random sample of each tenth between 0 and the largest activation, ${sig3(max)}.`, panel, card));
  const stops: (() => void)[] = [];
  for (let interval = INTERVALS - 1; interval >= 0; interval -= 1) {
    const found = card.examples.filter((example) => example.interval === interval);
    const range = `${sig3((max * interval) / INTERVALS)} – ${sig3((max * (interval + 1)) / INTERVALS)}`;
    const shown = h("div", { class: "nbs-interval-body" });
    const share = `${interval / INTERVALS} – ${(interval + 1) / INTERVALS} of max`;
    const label = h("div", {}, h("b", {}, range), h("br"), h("span", {}, share));
    body.append(h("div", { class: "nbs-interval" }, label, shown));
    if (found.length) stops.push(drawExamples(shown, panel, card, found, readout));
    else shown.append(h("p", { class: "nbs-none" }, "none"));
  }
  return () => {
    for (const stop of stops) stop();
  };
}

function drawExamples(body: HTMLElement, panel: Panel, card: Card, found: Example[], readout: Readout): () => void {
  const draw = panel.about.modality === "text" ? textsPanel : imagesPanel;
  return draw(body, panel, card, found, readout);
}

function note(text: string, { state }: Panel, card: Card): HTMLElement {
  const cut = card.partial && state.get("kernel") === "none";
  return h(
    "p",
    { class: "nbs-note" },
    cut ? `${text} Shortened in this saved view; a running kernel shows more.` : text,
  );
}

/** Two or more buttons of which one is pressed. */
function segments<K extends "examples" | "scale">(
  { state }: Panel,
  key: K,
  label: string,
  options: [View[K], string, string][],
): HTMLElement {
  const group = h("div", { class: "nbs-segments", role: "group", "aria-label": label });
  for (const [value, text, title] of options) {
    const button = h("button", { type: "button", title }, text);
    button.addEventListener("click", () => {
      state.set(key, value);
      press();
    });
    group.append(button);
  }
  const press = () => {
    for (const [number, [value]] of options.entries()) {
      group.children[number]?.setAttribute("aria-pressed", String(state.get(key) === value));
    }
  };
  press();
  return group;
}

function choice(panel: Panel): HTMLElement {
  return segments(panel, "examples", "Which examples", [
    ["top", "Strongest", "The rows with the largest activation"],
    ["intervals", "All strengths", "A sample from weak to strong"],
  ]);
}

/** Heat map and colour controls; the returned function stops the legend from following the state. */
function fillControls(bar: HTMLElement, panel: Panel, card: Card): () => void {
  const { state, about } = panel;
  if (about.modality === "image") {
    const heat = h("input", { type: "checkbox" });
    heat.checked = state.get("heat");
    heat.addEventListener("change", () => state.set("heat", heat.checked));
    const opacity = h("input", {
      type: "range",
      min: 0.1,
      max: 1,
      step: 0.05,
      "aria-label": "Opacity of the heat map",
    });
    opacity.value = String(state.get("opacity"));
    opacity.addEventListener("input", () => state.set("opacity", Number(opacity.value)));
    const title = "Hold h to see the pictures alone";
    bar.append(h("label", { class: "nbs-check", title }, heat, "Heat map"), opacity);
  }
  const end = h("span");
  bar.append(
    legend(panel, end),
    segments(panel, "scale", "Colours run to the largest activation of", [
      ["card", "One scale", "Colours mean the same in all examples of this latent"],
      ["example", "Each its own", "Colours run to each example's own largest activation"],
    ]),
  );
  return state.on(["scale"], () => {
    end.textContent = state.get("scale") === "card" ? sig3(card.scale) : "own max";
  });
}

function legend({ about }: Panel, end: HTMLElement): HTMLElement {
  const ramp = h("i", { class: about.modality === "text" ? "nbs-ramp nbs-ramp-text" : "nbs-ramp" });
  if (about.modality === "image") ramp.style.backgroundImage = gradient();
  return h("span", { class: "nbs-legend" }, h("span", {}, "0"), ramp, end);
}
