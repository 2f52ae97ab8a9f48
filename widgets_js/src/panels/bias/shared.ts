/** What the panels of the bias dashboard share. */

import { attr, bdi, h, listen } from "../../core/dom";
import { sig3, visible } from "../../core/format";
import type { Kernel } from "../../core/rpc";
import type { State } from "../../core/state";
import type { Details, Effect, Inputs, Ranking, Report } from "./tables";

export type Tab = "concepts" | "errors" | "retrieval";

/** Inputs in named strips: what stands behind a number. */
export interface Behind {
  title: string;
  strips: { name: string; inputs: { input: number; said: string }[] }[];
}

export interface View {
  latent: number;
  tab: Tab;
  ranking: Ranking;
  /** Chosen group, output and condition: positions in the labels. */
  group: number;
  output: number;
  given: number;
  text: string;
  flaggedOnly: boolean;
  kernel: Kernel;
  /** The lines of the list; undefined is the line that parts flagged ones from the others. */
  order: (Effect | undefined)[];
  behind: Behind | undefined;
}

/** Where details and pictures come from; panels never see the widget's model. */
export interface Source {
  inputs: Inputs;
  saved: Details;
  known(concept: number): Details | undefined;
  ask(concept: number): Promise<Details>;
  askPictures(ids: number[]): Promise<void>;
  askTable(name: string): Promise<BlobPart>;
}

export interface Panel {
  report: Report;
  state: State<View>;
  source: Source;
}

export const MEASURES: Record<Ranking, { label: string; unit: string; title: string }> = {
  association: { label: "Association", unit: "rank-biserial", title: "difference between the groups, alone" },
  conditional: {
    label: "Conditional",
    unit: "rank-biserial",
    title: "difference within the strata of another attribute",
  },
  reliance: {
    label: "Reliance",
    unit: "Δ probability",
    title: "what the classifier's probability changes by when the concept is set",
  },
};

/** `0.412 [0.380, 0.443]`; "–" where there is none. */
export function interval({ value, low, high }: { value: number; low: number; high: number }): string {
  return Number.isNaN(value) ? "–" : `${sig3(value)} [${sig3(low)}, ${sig3(high)}]`;
}

/** A q-value; what float32 cannot hold any more is said to be small, not to be 0. */
export function qText(q: number): string {
  return q < 1e-30 ? "< 1e−30" : sig3(q);
}

/** What an effect that does not pass cannot be told from. */
export function nothing(ranking: Ranking): string {
  return ranking === "reliance" ? "matched latents" : "0";
}

export function maskedText(report: Report): string {
  return `masked: n < ${report.about.min_n}`;
}

/** The smallest round number that is not below `size`. */
export function roundUp(size: number): number {
  if (!(size > 0) || !Number.isFinite(size)) return 1;
  const unit = 10 ** Math.floor(Math.log10(size));
  return ([1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].find((one) => one * unit >= size * 0.999) ?? 10) * unit;
}

/**
 * A dot with its interval on a track from `from` to `to`, drawn by the style sheet. `band` is shaded, `at` a line.
 * Decorative: the number stands beside it as text.
 */
export function whisker(
  one: { value: number; low: number; high: number },
  domain: [number, number],
  options: { hollow?: boolean; band?: [number, number] | undefined; at?: number | undefined } = {},
): HTMLElement {
  const share = (value: number) => Math.min(1, Math.max(0, (value - domain[0]) / (domain[1] - domain[0])));
  const track = h("span", { class: "nbs-track", "aria-hidden": "true" });
  const part = (name: string, from: number, to = from) => {
    const piece = h("i", { class: name });
    piece.style.left = `${share(from) * 100}%`;
    piece.style.width = `${(share(to) - share(from)) * 100}%`;
    track.append(piece);
  };
  const { band, at, hollow } = options;
  if (band && !Number.isNaN(band[0])) part("nbs-band", ...band);
  if (at !== undefined) part("nbs-zero", at);
  if (!Number.isNaN(one.value)) {
    if (!Number.isNaN(one.low)) part("nbs-ci", one.low, one.high);
    part(hollow ? "nbs-dot nbs-hollow" : "nbs-dot", one.value);
  }
  return track;
}

/** A button that is a number: one click leads to the images behind it. */
export function numberButton(text: string, title: string, open: () => void): HTMLElement | string {
  if (text === "–") return text;
  const button = h("button", { type: "button", class: "nbs-number", title }, text);
  listen(button, "click", open);
  return button;
}

/** A group of buttons of which one is pressed. */
export function segments<T extends string | number>(
  label: string,
  options: { key: T; text: string; title?: string; disabled?: boolean }[],
  choose: (key: T) => void,
): { element: HTMLElement; mark(key: T): void } {
  const element = h("div", { class: "nbs-segments", role: "group", "aria-label": label });
  const buttons = options.map(({ key, text, title, disabled }) => {
    const button = h("button", { type: "button", title, disabled }, text);
    listen(button, "click", () => choose(key));
    element.append(button);
    return { key, button };
  });
  return {
    element,
    mark: (key) => {
      for (const one of buttons) attr(one.button, "aria-pressed", one.key === key);
    },
  };
}

/** A labelled choice among names from the data; hidden where there is nothing to choose. */
export function picker(label: string, codes: number[], report: Report, choose: (code: number) => void) {
  const select = h("select", { "aria-label": label });
  for (const code of codes) select.append(h("option", { value: code }, visible(report.label(code))));
  listen(select, "change", () => choose(Number(select.value)));
  const element = h("label", { class: "nbs-check", hidden: codes.length < 2 }, label, select);
  return {
    element,
    show: (code: number, shown: boolean) => {
      element.hidden = !shown || codes.length < 2;
      select.value = String(code);
    },
  };
}

/** A table of texts and elements; the first cell of a line is its head. */
export function tableOf(label: string, head: (string | Node)[], lines: (string | Node)[][]): HTMLElement {
  const body = h("tbody");
  for (const line of lines) {
    body.append(
      h("tr", {}, ...line.map((cell, at) => (at === 0 ? h("th", { scope: "row" }, cell) : h("td", {}, cell)))),
    );
  }
  const heads = head.map((cell) => h("th", { scope: "col" }, cell));
  return h(
    "div",
    { class: "nbs-wide", tabindex: "0", role: "region", "aria-label": label },
    h("table", {}, h("thead", {}, h("tr", {}, ...heads)), body),
  );
}

/** Text from the data, safe to stand anywhere. */
export function named(text: string): HTMLElement {
  return bdi(visible(text));
}

export function section(title: string): { element: HTMLElement; body: HTMLElement } {
  const body = h("div");
  return { element: h("section", { class: "nbs-section" }, h("h4", {}, title), body), body };
}

export function none(text: string): HTMLElement {
  return h("p", { class: "nbs-none" }, text);
}

export function axis(number: number): string {
  return String(Number(number.toPrecision(3))).replace("-", "−");
}

export function distinct(codes: number[]): number[] {
  return [...new Set(codes)];
}

/** What matched latents do instead: 2.5 % to 97.5 % of them. */
export function controls({ table, row }: Effect): [number, number] {
  return [table.numbers("control_low")[row] ?? Number.NaN, table.numbers("control_high")[row] ?? Number.NaN];
}
