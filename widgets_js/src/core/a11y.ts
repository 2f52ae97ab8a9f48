/** Keyboard and screen reader manners that every dashboard shares. */

import { h, listen } from "./dom";

let ids = 0;

/** An id that no other element of the page has from us. */
export function freshId(what: string): string {
  ids += 1;
  return `nbs-${what}-${ids}`;
}

/** One Tab stop for many items: arrows, Home and End move the focus among them. Returns what stops it. */
export function roving(root: HTMLElement, selector: string, columns: () => number = () => 1): () => void {
  const items = () => [...root.querySelectorAll<HTMLElement>(selector)];
  for (const [number, item] of items().entries()) item.tabIndex = number === 0 ? 0 : -1;
  const onKey = (event: KeyboardEvent) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const all = items();
    const at = all.indexOf(document.activeElement as HTMLElement);
    const inShadow = at < 0 ? all.indexOf(event.target as HTMLElement) : at;
    const next = step(event.key, inShadow, all.length, columns());
    if (inShadow < 0 || next === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    const item = all[next];
    if (!item) return;
    for (const other of all) other.tabIndex = other === item ? 0 : -1;
    item.focus();
  };
  listen(root, "keydown", onKey);
  return () => root.removeEventListener("keydown", onKey);
}

/** Where a key leads from item `at` of `length`; undefined for other keys. `columns` is what Up and Down jump. */
export function step(key: string, at: number, length: number, columns = 1, page = 10): number | undefined {
  const moves: Record<string, number> = {
    ArrowRight: at + 1,
    ArrowLeft: at - 1,
    ArrowDown: at + columns,
    ArrowUp: at - columns,
    Home: 0,
    End: length - 1,
    PageDown: at + page,
    PageUp: at - page,
  };
  const next = moves[key];
  return next === undefined || length === 0 ? undefined : Math.min(length - 1, Math.max(0, next));
}

/** A region that screen readers speak when its text changes. */
export function liveRegion(): { element: HTMLElement; say(text: string): void } {
  const element = h("div", { class: "nbs-spoken", role: "status", "aria-live": "polite" });
  return {
    element,
    say: (text) => {
      element.textContent = text;
    },
  };
}

/** Whether typing goes into a field, so that single-key shortcuts must keep quiet. */
export function isTyping(target: EventTarget | null): boolean {
  return (
    target instanceof HTMLTextAreaElement ||
    target instanceof HTMLSelectElement ||
    (target instanceof HTMLInputElement && !["checkbox", "radio", "range", "button"].includes(target.type))
  );
}
