/** What the panels of the attribution strip share. */

import { attr, h, listen } from "../../core/dom";
import { sig3, visible } from "../../core/format";
import type { Kernel } from "../../core/rpc";
import type { State } from "../../core/state";
import type { About, Cells, Input, Pair, Share } from "./tables";

/** What gives a token its colour. */
export type Colour = "all" | "latent" | "source";

export interface View {
  latent: number;
  token: number;
  input: number;
  colour: Colour;
  list: "token" | "all";
  /** Which pre-activation is shown by head and source: its place among the pairs. */
  pair: number;
  kernel: Kernel;
  /** The input that is shown; undefined while it is asked for. */
  shown: Input | undefined;
  /** What is shown by head and source. */
  cells: Cells | undefined;
}

export interface Panel {
  about: About;
  ranking: Share[];
  pairs: Pair[];
  state: State<View>;
  /** Say what lies under the pointer or the focus, in the line at the foot. */
  say(parts: string[]): void;
}

/** With a sign: +0.412, −1.20, 0. */
export function signed(value: number): string {
  return `${value > 0 ? "+" : ""}${sig3(value)}`;
}

export function nameOf({ latent, name }: { latent: number; name?: string | undefined }): string {
  return name ? `${latent} ${visible(name)}` : `latent ${latent}`;
}

/** A token as a reader names it: its number and its text, or the place of its patch. */
export function placeOf({ grid, prefix_tokens }: About, token: number, text: string): string {
  if (!grid) return text ? `token ${token} “${visible(text)}”` : `token ${token}`;
  const at = token - prefix_tokens;
  if (at < 0) return prefix_tokens === 1 ? "CLS token" : `prefix token ${token}`;
  return `row ${Math.floor(at / grid[1]) + 1}, column ${(at % grid[1]) + 1}`;
}

/** Contribution of every source, summed over heads. */
export function bySource({ heads, sources, contribution }: Cells): number[] {
  return Array.from({ length: sources }, (_, source) => {
    let sum = 0;
    for (let head = 0; head < heads; head += 1) sum += contribution[head * sources + source] ?? 0;
    return sum;
  });
}

/** Buttons of which one is pressed. */
export function choices<K extends string>(label: string, options: [K, string, string][], choose: (key: K) => void) {
  const group = h("div", { class: "nbs-segments", role: "group", "aria-label": label });
  const buttons = options.map(([key, text, title]) => {
    const button = h("button", { type: "button", title }, text);
    listen(button, "click", () => choose(key));
    group.append(button);
    return { key, button };
  });
  const mark = (key: K) => {
    for (const one of buttons) attr(one.button, "aria-pressed", one.key === key);
  };
  return { element: group, mark };
}

/** A table twin, made when it is opened. */
export function twin(title: string, head: string[], lines: () => string[][]): HTMLElement {
  const details = h("details", {}, h("summary", {}, title));
  listen(
    details,
    "toggle",
    () => {
      const row = (cells: string[], tag: "td" | "th") => h("tr", {}, ...cells.map((text) => h(tag, {}, text)));
      details.append(
        h("table", {}, h("thead", {}, row(head, "th")), h("tbody", {}, ...lines().map((line) => row(line, "td")))),
      );
    },
    { once: true },
  );
  return details;
}
