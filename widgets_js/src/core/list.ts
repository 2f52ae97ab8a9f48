/** A list of any length of which only the visible rows exist: one Tab stop, arrows inside. */

import { freshId, step } from "./a11y";
import { attr, h, listen } from "./dom";

export interface ListOptions {
  label: string;
  rowHeight: number;
  /** Fill a row's element; it is new and empty. */
  draw(row: HTMLElement, index: number): void;
  /** The user chose a row, with the pointer or with a key. */
  choose(index: number): void;
}

const OVERSCAN = 6;

export class VirtualList {
  readonly element: HTMLElement;
  readonly #space = h("div", { class: "nbs-space", role: "presentation" });
  readonly #rows = new Map<number, HTMLElement>();
  readonly #id = freshId("list");
  readonly #observer: ResizeObserver | undefined;
  #length = 0;
  #chosen = -1;
  #frame = 0;
  #height = 0;

  constructor(private readonly options: ListOptions) {
    this.element = h(
      "div",
      { class: "nbs-list", role: "listbox", tabindex: "0", "aria-label": options.label },
      this.#space,
    );
    // A host may move us in its page, which sets the position back without a scroll event.
    listen(this.element, "pointerenter", () => this.#later());
    listen(this.element, "scroll", () => this.#later(), { passive: true });
    listen(this.element, "keydown", (event) => this.#onKey(event));
    listen(this.element, "click", (event) => this.#onClick(event));
    if (typeof ResizeObserver !== "undefined") {
      this.#observer = new ResizeObserver(() => this.#resized());
      this.#observer.observe(this.element);
    }
  }

  /** Show `length` rows from anew; `chosen` is -1 when the chosen one is not among them. */
  reset(length: number, chosen: number): void {
    this.#length = length;
    this.#space.style.height = `${length * this.options.rowHeight}px`;
    this.#clear();
    this.#chosen = -1;
    this.choose(chosen);
    this.draw();
  }

  /** Mark a row and bring it into view, without telling `options.choose`. */
  choose(index: number): void {
    if (this.#chosen !== index) {
      this.#rows.get(this.#chosen)?.setAttribute("aria-selected", "false");
      this.#chosen = index;
    }
    if (index < 0) this.element.removeAttribute("aria-activedescendant");
    else {
      this.#reveal(index);
      this.draw();
      this.#rows.get(index)?.setAttribute("aria-selected", "true");
      attr(this.element, "aria-activedescendant", `${this.#id}-${index}`);
    }
  }

  /** Draw every visible row again. */
  refresh(): void {
    this.#clear();
    this.draw();
  }

  draw(): void {
    const { rowHeight } = this.options;
    const height = this.element.clientHeight || 400;
    const first = Math.max(0, Math.floor(this.element.scrollTop / rowHeight) - OVERSCAN);
    const last = Math.min(this.#length - 1, Math.ceil((this.element.scrollTop + height) / rowHeight) + OVERSCAN);
    for (const [index, row] of this.#rows) {
      if (index >= first && index <= last) continue;
      row.remove();
      this.#rows.delete(index);
    }
    for (let index = first; index <= last; index += 1) {
      if (!this.#rows.has(index)) this.#space.append(this.#make(index));
    }
  }

  dispose(): void {
    cancelAnimationFrame(this.#frame);
    this.#observer?.disconnect();
  }

  #make(index: number): HTMLElement {
    const row = h("div", {
      class: "nbs-row",
      role: "option",
      id: `${this.#id}-${index}`,
      "data-index": index,
      "aria-setsize": this.#length,
      "aria-posinset": index + 1,
      "aria-selected": index === this.#chosen ? "true" : "false",
    });
    row.style.top = `${index * this.options.rowHeight}px`;
    this.options.draw(row, index);
    this.#rows.set(index, row);
    return row;
  }

  #clear(): void {
    for (const row of this.#rows.values()) row.remove();
    this.#rows.clear();
  }

  #reveal(index: number): void {
    const { rowHeight } = this.options;
    const height = this.element.clientHeight || 400;
    const top = index * rowHeight;
    const above = this.element.scrollTop - top;
    const below = top + rowHeight - this.element.scrollTop - height;
    // A step scrolls by a row; a jump puts the row in the middle, with its neighbours around it.
    if (above > 2 * rowHeight || below > 2 * rowHeight) this.element.scrollTop = top - (height - rowHeight) / 2;
    else if (above > 0) this.element.scrollTop -= above;
    else if (below > 0) this.element.scrollTop += below;
  }

  /** The first size comes after the host attached us: only now can the chosen row be brought into view. */
  #resized(): void {
    const height = this.element.clientHeight;
    if (this.#height === 0 && height > 0 && this.#chosen >= 0) this.#reveal(this.#chosen);
    this.#height = height;
    this.#later();
  }

  #later(): void {
    if (this.#frame) return;
    this.#frame = requestAnimationFrame(() => {
      this.#frame = 0;
      this.draw();
    });
  }

  #onKey(event: KeyboardEvent): void {
    if (event.ctrlKey || event.metaKey || event.altKey || event.key === "ArrowLeft" || event.key === "ArrowRight")
      return;
    const page = Math.max(1, Math.floor((this.element.clientHeight || 400) / this.options.rowHeight) - 1);
    const next = step(event.key, this.#chosen, this.#length, 1, page);
    if (next === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    this.choose(next);
    this.options.choose(next);
  }

  #onClick(event: Event): void {
    const row = (event.target as Element).closest<HTMLElement>(".nbs-row");
    if (!row) return;
    const index = Number(row.dataset.index);
    this.choose(index);
    this.options.choose(index);
  }
}
