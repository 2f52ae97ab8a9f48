/** The keys of the dashboard: what they do, and the sheet that lists them. */

import { isTyping } from "../core/a11y";
import { h, listen } from "../core/dom";
import { openNote } from "./note";
import { openOwn } from "./read";
import type { Panel } from "./shared";

const KEYS: [string, string][] = [
  ["/", "search"],
  ["[  ]", "previous, next latent of the list"],
  ["↑ ↓", "move in the list"],
  ["← →", "move among pictures or tokens"],
  ["hold h", "pictures without the heat map"],
  ["t", "strongest, all strengths"],
  ["n", "label, rate or comment"],
  ["o", "your own text"],
  ["?", "show or hide this"],
];

export function keysPanel(root: HTMLElement, panel: Panel): () => void {
  const sheet = h("div", { class: "nbs-help", role: "dialog", "aria-label": "Keys", hidden: true });
  const rows = KEYS.map(([key, text]) => h("div", {}, h("kbd", {}, key), h("span", {}, text)));
  sheet.append(h("h4", {}, "Keys"), ...rows);
  const open = h("button", { type: "button", class: "nbs-keys", "aria-label": "Keys", title: "Keys (?)" }, "?");
  open.setAttribute("aria-expanded", "false");
  root.append(open, sheet);
  const toggle = (shown = sheet.hidden) => {
    sheet.hidden = !shown;
    open.setAttribute("aria-expanded", String(shown));
  };
  listen(open, "click", () => toggle());
  const { state } = panel;
  const onDown = (event: KeyboardEvent) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (event.key === "Escape") return toggle(false);
    if (isTyping(event.target)) return;
    const actions: Record<string, () => void> = {
      "/": () => root.querySelector<HTMLElement>(".nbs-search")?.focus(),
      "[": () => neighbour(panel, -1),
      "]": () => neighbour(panel, 1),
      "?": () => toggle(),
      h: () => state.set("held", true),
      n: () => openNote(root),
      o: () => openOwn(root),
      t: () => state.set("examples", state.get("examples") === "top" ? "intervals" : "top"),
    };
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    event.stopPropagation();
    action();
  };
  const release = () => state.set("held", false);
  const onUp = (event: KeyboardEvent) => event.key === "h" && release();
  listen(root, "keydown", onDown);
  listen(root, "keyup", onUp);
  listen(root, "focusout", release);
  return () => {
    root.removeEventListener("keydown", onDown);
    root.removeEventListener("keyup", onUp);
    root.removeEventListener("focusout", release);
  };
}

function neighbour({ state }: Panel, move: 1 | -1): void {
  const order = state.get("order");
  const at = Array.prototype.indexOf.call(order, state.get("latent"));
  const next = order[at < 0 ? 0 : at + move];
  if (next !== undefined) state.set("latent", next);
}
