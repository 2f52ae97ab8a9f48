/** Examples that are texts: the tokens of a context, coloured by activation, the peak also underlined. */

import { freshId, step } from "../core/a11y";
import { attr, bdi, h, listen } from "../core/dom";
import { sig3, visible } from "../core/format";
import type { Panel, Readout } from "./shared";
import type { Card, Example } from "./tables";

const BEFORE = 28;
const AFTER = 14;
const HANDFUL = 6;

export function textsPanel(
  root: HTMLElement,
  panel: Panel,
  card: Card,
  examples: Example[],
  readout: Readout,
): () => void {
  const list = h("div", { class: "nbs-texts" });
  const shades: (() => void)[] = [];
  for (const example of examples) list.append(passage(panel, card, example, readout, shades));
  root.append(list);
  return panel.state.on(["scale"], () => {
    for (const shade of shades) shade();
  });
}

/** Which tokens are shown at first: a window around the peak, or all where they are few. */
export function folded(tokens: number, peak: number): [number, number] {
  const from = peak < 0 ? 0 : peak - BEFORE;
  const to = peak < 0 ? BEFORE + AFTER : peak + AFTER + 1;
  // A button that opens a handful of tokens takes more room than they do.
  return [from <= HANDFUL ? 0 : from, to >= tokens - HANDFUL ? tokens : to];
}

function passage(panel: Panel, card: Card, example: Example, readout: Readout, shades: (() => void)[]): HTMLElement {
  const key = visible(example.key);
  const { context } = example;
  const head = h("div", { class: "nbs-caption" }, h("b", {}, sig3(example.act)), bdi(key, "nbs-key"));
  const box = h("div", { class: "nbs-passage" }, head);
  if (!context) {
    box.append(h("p", { class: "nbs-none" }, "The text of this example is not stored with the analysis."));
    return box;
  }
  const line = h("span", {
    class: "nbs-tokens",
    role: "listbox",
    tabindex: "0",
    "aria-label": `${key}, activation ${sig3(example.act)}; arrow keys move among the tokens`,
  });
  // What opens more stands beside the tokens: a list of choices holds nothing else.
  const all = h("div", { dir: "auto" });
  box.append(all);
  const values = new Map([...example.map_at].map((at, number) => [at, example.map[number] ?? 0]));
  if (example.at >= 0) values.set(example.at, example.act);
  const draw = (from: number, to: number) => {
    const [before, after] = fill(line, example, values, [from, to], draw);
    all.replaceChildren(...before, line, ...after);
    shade(line, panel, card, example);
  };
  const [from, to] = folded(context.tokens.length, example.at);
  draw(from, to);
  shades.push(() => shade(line, panel, card, example));
  attend(line, panel, card, example, values, readout);
  return box;
}

/** Put tokens into the line; gives what stands before and after it. */
function fill(
  line: HTMLElement,
  example: Example,
  values: Map<number, number>,
  [from, to]: [number, number],
  draw: (from: number, to: number) => void,
): [Node[], Node[]] {
  const context = example.context as NonNullable<Example["context"]>;
  const tokens: Node[] = [];
  for (let at = from; at < to; at += 1) tokens.push(token(context.tokens[at] ?? "", at, example, values));
  line.replaceChildren(...tokens);
  const rest = context.tokens.length - to;
  const cut = (there: boolean) => (there ? [h("span", { class: "nbs-cut" }, "…")] : []);
  return [
    from > 0 ? [more(`… ${from} before`, () => draw(0, to))] : cut(context.before),
    rest > 0 ? [more(`${rest} after …`, () => draw(from, context.tokens.length))] : cut(context.after),
  ];
}

function token(text: string, at: number, example: Example, values: Map<number, number>): HTMLElement {
  const value = values.get(at) ?? 0;
  const shown = visible(text);
  const element = h("span", { class: "nbs-token", role: "option", "data-at": at, "aria-selected": "false" }, shown);
  attr(element, "aria-label", `${shown.trim() || "space"}, ${sig3(value)}`);
  if (value > 0) element.dataset.value = String(value);
  if (at === example.at) element.classList.add("nbs-strongest");
  return element;
}

function more(text: string, open: () => void): HTMLElement {
  const button = h("button", { type: "button", class: "nbs-more" }, text);
  listen(button, "click", open);
  return button;
}

function shade(line: HTMLElement, panel: Panel, card: Card, example: Example): void {
  const own = panel.state.get("scale") === "example";
  const largest = own ? Math.max(example.act, ...example.map) : card.scale;
  for (const element of line.querySelectorAll<HTMLElement>("[data-value]")) {
    const share = Math.min(1, Number(element.dataset.value) / (largest || 1));
    element.style.setProperty("--share", share.toFixed(3));
  }
}

/** What the latent does to the token that follows: as measured, else what its write side says of it. */
function onNext({ promoted }: Card, { context, effect }: Example, at: number, act: number): string | undefined {
  const next = context?.tokens[at + 1];
  if (next === undefined || act <= 0) return undefined;
  const signed = (value: number) => `${value > 0 ? "+" : ""}${sig3(value)}`;
  const measured = effect?.[at] ?? Number.NaN;
  if (!Number.isNaN(measured)) return `log p of the next token “${visible(next)}” ${signed(measured)}`;
  const known = promoted.find(({ side, token }) => side === "write" && token === next);
  return known && `next token “${visible(next)}” is ${known.suppressed ? "suppressed" : "promoted"}`;
}

/** Values of tokens under the pointer, and under a cursor that the arrow keys move. */
function attend(
  line: HTMLElement,
  panel: Panel,
  card: Card,
  example: Example,
  values: Map<number, number>,
  readout: Readout,
): void {
  const context = example.context as NonNullable<Example["context"]>;
  let cursor: HTMLElement | null = null;
  const say = (element: HTMLElement) => {
    const at = Number(element.dataset.at);
    const position = context.number * panel.about.positions + context.start + at;
    const shown = visible(context.tokens[at] ?? "");
    const value = values.get(at) ?? 0;
    const next = onNext(card, example, at, value);
    const said = [`activation ${sig3(value)}`, `“${shown}”`, `token ${position}`];
    readout([...said, ...(next ? [next] : []), visible(example.key)]);
  };
  const move = (element: HTMLElement | null) => {
    cursor?.setAttribute("aria-selected", "false");
    cursor = element;
    if (!element) return line.removeAttribute("aria-activedescendant");
    attr(element, "aria-selected", "true");
    element.id ||= freshId("token");
    attr(line, "aria-activedescendant", element.id);
    say(element);
  };
  listen(line, "pointerover", (event) => {
    const element = (event.target as Element).closest<HTMLElement>(".nbs-token");
    if (element) say(element);
  });
  listen(line, "focus", () => {
    move(line.querySelector<HTMLElement>(".nbs-strongest") ?? line.querySelector<HTMLElement>(".nbs-token"));
  });
  listen(line, "blur", () => move(null));
  listen(line, "keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target !== line) return;
    if (event.key === "ArrowUp" || event.key === "ArrowDown") return;
    const all = [...line.querySelectorAll<HTMLElement>(".nbs-token")];
    const next = step(event.key, cursor ? all.indexOf(cursor) : -1, all.length);
    if (next === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    move(all[next] ?? null);
  });
}
