/** Single keys of a dashboard, and the sheet that lists them. */

import { isTyping } from "./a11y";
import { attr, h, listen } from "./dom";

/** `[key, what it does]`, and what runs. Keys without an action are only listed. */
export interface Key {
  key: string;
  text: string;
  actions?: Record<string, () => void>;
}

/** Put the button and the sheet into `root` and listen there; `?` and Escape belong to the sheet. */
export function keySheet(root: HTMLElement, keys: Key[], onEscape: () => void = () => {}): () => void {
  const sheet = h("div", { class: "nbs-help", role: "dialog", "aria-label": "Keys", hidden: true });
  const listed = [...keys, { key: "?", text: "show or hide this" }];
  sheet.append(
    h("h4", {}, "Keys"),
    ...listed.map(({ key, text }) => h("div", {}, h("kbd", {}, key), h("span", {}, text))),
  );
  const open = h("button", { type: "button", class: "nbs-keys", "aria-label": "Keys", title: "Keys (?)" }, "?");
  attr(open, "aria-expanded", "false");
  root.append(open, sheet);
  const toggle = (shown = sheet.hidden) => {
    sheet.hidden = !shown;
    attr(open, "aria-expanded", shown);
  };
  listen(open, "click", () => toggle());
  const actions: Record<string, () => void> = { "?": () => toggle() };
  for (const one of keys) Object.assign(actions, one.actions);
  const onDown = (event: KeyboardEvent) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (event.key === "Escape") {
      if (sheet.hidden) onEscape();
      return toggle(false);
    }
    const action = isTyping(event.target) ? undefined : actions[event.key];
    if (!action) return;
    event.preventDefault();
    event.stopPropagation();
    action();
  };
  listen(root, "keydown", onDown);
  return () => root.removeEventListener("keydown", onDown);
}
