/** The scripts that hidden widgets have brought into this page: modules do not share their variables, the page does. */

import type { Disposer, RenderArgs } from "./life";

/** A dashboard's script, and the style it needs. */
export interface Runtime {
  render(args: RenderArgs): Disposer;
  sheet: string;
}

interface Runtimes {
  /** By the model id of the hidden widget. */
  known: Map<string, Runtime>;
  /** Says "change" when there is one more. */
  changed: EventTarget;
}

const PLACE = Symbol.for("nb_sae.runtimes");

export function runtimes(): Runtimes {
  const page = globalThis as unknown as Record<symbol, Runtimes | undefined>;
  page[PLACE] ??= { known: new Map(), changed: new EventTarget() };
  return page[PLACE];
}

/** Put a script where dashboards look for it; the returned function takes it away. */
export function offer(key: string, runtime: Runtime): Disposer {
  const { known, changed } = runtimes();
  known.set(key, runtime);
  changed.dispatchEvent(new Event("change"));
  return () => known.delete(key);
}
