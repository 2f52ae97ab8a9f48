/**
 * What a dashboard may ask of whoever hosts it: JupyterLab with anywidget 0.9.21 to 0.11, or our own report page.
 *
 * `signal` and `host` came with anywidget 0.11; both may be missing. Errors never reach the host: it would show an
 * empty cell, so they are drawn inside the element we were given.
 */

import { errorCard } from "./errors";
import type { AnyModel, Disposer, Life, RenderArgs } from "./life";
import { linkedModel } from "./link";
import { offer, type Runtime } from "./runtimes";
import { checkSides } from "./version";

export type Mount = (model: AnyModel, el: HTMLElement, life: Life) => void;

interface Hooks {
  initialize(args: Pick<RenderArgs, "model" | "signal">): Runtime | undefined;
  render(args: RenderArgs): Disposer;
}

/** Make the default export of a dashboard's module. */
export function dashboard(mount: Mount): Hooks {
  const hooks: Hooks = {
    /** The same script is that of the hidden widget which lends it to others: it says so, and where they find it. */
    initialize({ model, signal }) {
      const key = model.get("serves");
      if (typeof key !== "string") return undefined;
      const runtime = { render: hooks.render, sheet: String(model.get("sheet")) };
      const withdraw = offer(key, runtime);
      signal?.addEventListener("abort", withdraw);
      return runtime;
    },
    render({ model, el, signal, host }) {
      const own = new AbortController();
      const disposers: Disposer[] = [];
      let closed = false;
      let failed: HTMLElement | undefined;
      const close = () => {
        if (closed) return;
        closed = true;
        own.abort();
        for (const dispose of disposers.reverse()) dispose();
      };
      if (signal?.aborted) return close;
      signal?.addEventListener("abort", close, { once: true });
      const life: Life = {
        signal: own.signal,
        kernelPossible: host?.kernel !== false,
        fail: (error) => {
          failed?.remove();
          failed = errorCard("Part of this dashboard failed; the rest goes on.", error);
          el.prepend(failed);
        },
        add: (dispose) => (closed ? dispose() : void disposers.push(dispose)),
      };
      life.add(keepKeys(el));
      el.addEventListener("error", sayDamaged, true);
      try {
        checkSides(model);
        mount(linkedModel(model, life), el, life);
        life.add(hideTwin(model.get("twin")));
      } catch (error) {
        el.replaceChildren(errorCard("This dashboard could not be drawn.", error));
      }
      return close;
    },
  };
  return hooks;
}

/**
 * Keep JupyterLab's one-key commands (`a`, `b`, `d d` change cells) away while the focus is in the dashboard.
 * The mark must be on the focused element itself: Lab matches it before it looks at what is around it.
 */
function keepKeys(el: HTMLElement): Disposer {
  const mark = ({ target }: FocusEvent) => (target as Element).setAttribute("data-lm-suppress-shortcuts", "true");
  el.addEventListener("focusin", mark);
  return () => el.removeEventListener("focusin", mark);
}

/** A picture that the browser cannot decode says so. The element is the view's own, and the listener goes with it. */
function sayDamaged({ target }: Event): void {
  if (target instanceof HTMLImageElement) target.replaceWith("damaged picture");
}

/**
 * Hide the static picture that stands above the live view, for as long as the view lives.
 * A rule, not an attribute: the host may attach the picture after us, or redraw it.
 */
function hideTwin(id: unknown): Disposer {
  if (typeof id !== "string" || !/^[\w-]+$/.test(id)) return () => {};
  const style = document.createElement("style");
  style.textContent = `[data-nbsae="${id}"]{display:none!important}`;
  document.head.append(style);
  return () => style.remove();
}

/** What `make` gives; where it fails, the dashboard says so and goes on with `otherwise`. */
export function attempt<T>(life: Life, make: () => T, otherwise: T): T {
  try {
    return make();
  } catch (error) {
    life.fail?.(error);
    return otherwise;
  }
}

/** Run `use` with the trait now and after every change; the returned function stops it. */
export function onTrait(model: AnyModel, key: string, use: (value: unknown) => void): Disposer {
  const run = () => use(model.get(key));
  model.on(`change:${key}`, run);
  run();
  return () => model.off(`change:${key}`, run);
}
