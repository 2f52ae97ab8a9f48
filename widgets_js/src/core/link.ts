/**
 * Linked dashboards: a latent that is chosen in one view is chosen in the others of the page, kernel or none.
 *
 * Views tell each other through an event of the document, as each may have loaded a script of its own. What one is told
 * is shown over the model and never written into it: only the view in which the user chose speaks to the kernel, which
 * then sets the other models. So no two of them answer each other, and fast steps never jump back.
 */

import type { AnyModel, Life, Listener } from "./life";

const EVENT = "nbsae:select";
/** The kernel repeats what the page shows already, later; for this long its older words do not count. */
const SETTLE_MS = 500;

interface Link {
  group?: string;
  /** Latents per site; null: not known. */
  sites: Record<string, number | null>;
}

interface Told {
  from: AnyModel;
  group: string;
  site: string;
  latent: number;
}

/** The model of one view; its choice may be one that was made elsewhere. */
export function linkedModel(model: AnyModel, life: Life): AnyModel {
  const ofSites = typeof model.get("site") === "string";
  /** The traits that are the choice. */
  const keys = ofSites ? ["site", "latent"] : ["latent"];
  const events = keys.map((key) => `change:${key}`);
  const listeners: [string, Listener][] = [];
  /** Chosen elsewhere, and not yet said by the model. */
  let told: Record<string, unknown> | undefined;
  let toldAt = 0;
  /** Chosen here since the last save. */
  let chosen = false;
  let silent = false;
  let settling: ReturnType<typeof setTimeout> | undefined;
  const get = (key: string) => (told && key in told ? told[key] : model.get(key));
  /** What the view was told last. */
  let last = keys.map(get);
  const link = () => (model.get("linked") ?? {}) as Link;
  const agrees = () => Object.entries(told ?? {}).every(([key, value]) => Object.is(model.get(key), value));

  /** Tell the view which parts of the choice are not as before. */
  const emit = () => {
    const before = last;
    last = keys.map(get);
    const changed = events.filter((_, at) => !Object.is(before[at], last[at]));
    for (const [event, listener] of [...listeners]) if (changed.includes(event)) (listener as () => void)();
  };
  const onModel = () => {
    if (silent) return;
    if (!agrees()) {
      const left = toldAt + SETTLE_MS - performance.now();
      clearTimeout(settling);
      if (left > 0) {
        settling = setTimeout(onModel, left);
        return;
      }
    }
    told = undefined;
    emit();
  };
  const onTold = ({ detail }: CustomEventInit<Told>) => {
    const { group, sites } = link();
    if (!detail || detail.from === own || !group || detail.group !== group || !(detail.site in sites)) return;
    const { site, latent } = detail;
    if (latent >= (sites[site] ?? Number.POSITIVE_INFINITY) || life.accepts?.(latent) === false) return;
    told = ofSites ? { site, latent } : { latent };
    toldAt = performance.now();
    if (agrees()) told = undefined;
    emit();
  };
  const own: AnyModel = {
    get,
    set: (key, value) => {
      if (keys.includes(key)) {
        // What was shown becomes the model's own, so that a change is a change of what the user saw.
        const shown = Object.entries(told ?? {});
        told = undefined;
        silent = true;
        for (const [one, was] of shown) model.set(one, was);
        silent = false;
        chosen ||= !Object.is(model.get(key), value);
      }
      model.set(key, value);
    },
    save_changes: () => {
      model.save_changes();
      const { group, sites } = link();
      if (chosen && group) {
        const site = ofSites ? get("site") : Object.keys(sites)[0];
        const detail = { from: own, group, site, latent: get("latent") };
        document.dispatchEvent(new CustomEvent(EVENT, { detail }));
      }
      chosen = false;
    },
    get widget_manager() {
      return model.widget_manager;
    },
    send: (content, callbacks, buffers) => model.send(content, callbacks, buffers),
    on: (event, listener) => {
      if (events.includes(event)) listeners.push([event, listener]);
      else model.on(event, listener);
    },
    off: (event, listener) => {
      if (event && !events.includes(event)) model.off(event, listener);
      const at = listeners.findIndex((one) => one[0] === event && one[1] === listener);
      if (at >= 0) listeners.splice(at, 1);
    },
  };
  for (const event of events) model.on(event, onModel);
  document.addEventListener(EVENT, onTold as EventListener);
  life.add(() => {
    clearTimeout(settling);
    for (const event of events) model.off(event, onModel);
    document.removeEventListener(EVENT, onTold as EventListener);
  });
  return own;
}
