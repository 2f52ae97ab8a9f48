/** The keys of the concept dashboard. */

import { isTyping } from "../../core/a11y";
import { h } from "../../core/dom";
import type { Panel } from "./shared";

const KEYS: [string, string][] = [
  ["/", "search"],
  ["[  ]", "previous, next concept of the list"],
  ["↑ ↓", "move in the list"],
  ["← →", "move among pictures, move a slider"],
  ["0", "reset the edit"],
  ["?", "show or hide this"],
];

export function keysPanel(root: HTMLElement, { concepts, state }: Panel): () => void {
  const sheet = h("div", { class: "nbs-help", role: "dialog", "aria-label": "Keys", hidden: true });
  sheet.append(h("h4", {}, "Keys"), ...KEYS.map(([key, text]) => h("div", {}, h("kbd", {}, key), h("span", {}, text))));
  const open = h("button", { type: "button", class: "nbs-keys", "aria-label": "Keys", title: "Keys (?)" }, "?");
  open.setAttribute("aria-expanded", "false");
  root.append(open, sheet);
  const toggle = (shown = sheet.hidden) => {
    sheet.hidden = !shown;
    open.setAttribute("aria-expanded", String(shown));
  };
  open.addEventListener("click", () => toggle());
  const move = (by: 1 | -1) => {
    const order = state.get("order");
    const at = Array.prototype.indexOf.call(order, concepts.rowOf(state.get("latent")));
    const next = order[at < 0 ? 0 : at + by];
    if (next !== undefined) state.set("latent", concepts.latent[next] as number);
  };
  const actions: Record<string, () => void> = {
    "/": () => root.querySelector<HTMLElement>(".nbs-search")?.focus(),
    "[": () => move(-1),
    "]": () => move(1),
    "0": () => state.set("set", new Map()),
    "?": () => toggle(),
  };
  const onKey = (event: KeyboardEvent) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (event.key === "Escape") return toggle(false);
    const action = isTyping(event.target) ? undefined : actions[event.key];
    if (!action) return;
    event.preventDefault();
    event.stopPropagation();
    action();
  };
  root.addEventListener("keydown", onKey);
  return () => root.removeEventListener("keydown", onKey);
}
