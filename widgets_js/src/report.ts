/**
 * Hosts the dashboards of an executed notebook in a plain page: no kernel, no network.
 *
 * The page holds the scripts once each (`data-nbsae-module`, gzip + base64), the state of every model
 * (`#nbsae-state`) and one `.nbsae-view` per displayed view with its static picture inside. A view that cannot be
 * drawn keeps its picture and gets a line that says why. Nothing here makes a request other than to `blob:`.
 */

import { b64decode, inflate } from "./report/decode";
import { host, ReportModel, type SavedModel } from "./report/model";
import { drawFigures } from "./report/plotly";

interface Outcome {
  ready: Promise<void>;
  mounted: number;
  errors: string[];
}

declare global {
  interface Window {
    nbsaeReport?: Outcome;
  }
}

interface Saved {
  version: number;
  models: Record<string, SavedModel>;
}

type Hooks = {
  initialize?: (args: object) => unknown;
  render?: (args: object) => unknown;
};

const STATE_VERSION = 1;

const outcome: Outcome = { ready: Promise.resolve(), mounted: 0, errors: [] };
window.nbsaeReport = outcome;

async function run(): Promise<void> {
  try {
    await mountViews();
  } catch (error) {
    outcome.errors.push(String(error));
    for (const view of document.querySelectorAll<HTMLElement>(".nbsae-view")) explain(view, error);
  }
  // Figures come after the dashboards: plotly.js alone takes longer to read than all of them.
  outcome.errors.push(...(await drawFigures()));
}

async function mountViews(): Promise<void> {
  const views = [...document.querySelectorAll<HTMLElement>(".nbsae-view[data-model]")];
  if (views.length === 0) return;
  const saved = JSON.parse(document.getElementById("nbsae-state")?.textContent ?? "null") as Saved | null;
  if (saved?.version !== STATE_VERSION) {
    throw new Error(`The state of this report has version ${saved?.version}; this script reads ${STATE_VERSION}.`);
  }
  const page = new Page(saved);
  for (const view of views) {
    try {
      await page.mount(view);
      outcome.mounted += 1;
    } catch (error) {
      outcome.errors.push(`${view.dataset.model}: ${error}`);
      explain(view, error);
    }
  }
}

/** The models and modules of one page, each made once. */
class Page {
  readonly #models = new Map<string, Promise<{ model: ReportModel; hooks: Hooks; exports: unknown }>>();
  readonly #modules = new Map<string, Promise<Hooks>>();
  readonly #styles = new Set<string>();

  constructor(readonly saved: Saved) {}

  async mount(view: HTMLElement): Promise<void> {
    const { model, hooks } = await this.#model(view.dataset.model ?? "");
    const el = document.createElement("div");
    el.className = "nbsae-live";
    view.append(el);
    const controller = new AbortController();
    try {
      await hooks.render?.({
        model: model.forView(controller.signal),
        el,
        signal: controller.signal,
        host: host((id) => this.#model(id)),
        experimental: model.experimental,
      });
      // Dashboards draw their own error card; the picture says more than the card does.
      if (el.childElementCount === 1 && el.firstElementChild?.matches(".nbs-error"))
        throw new Error(el.textContent ?? "");
      if (el.childNodes.length === 0) throw new Error("The dashboard drew nothing.");
    } catch (error) {
      controller.abort();
      el.remove();
      throw error;
    }
    for (const child of view.children) if (child instanceof HTMLElement && child !== el) child.hidden = true;
    view.dataset.mounted = "true";
  }

  #model(id: string) {
    return remember(this.#models, id, async () => {
      const entry = this.saved.models[id];
      if (!entry) throw new Error(`This report holds no state for the dashboard ${id}.`);
      if (entry.style) await this.#style(entry.style);
      const hooks = await this.#module(entry.module);
      const model = new ReportModel(entry);
      const controller = new AbortController();
      const exports = await hooks.initialize?.({
        model: model.forView(controller.signal),
        signal: controller.signal,
        experimental: model.experimental,
      });
      return { model, hooks, exports };
    });
  }

  #module(key: string): Promise<Hooks> {
    return remember(this.#modules, key, async () => {
      const source = await this.#source("data-nbsae-module", key);
      const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
      try {
        const loaded = ((await import(/* @vite-ignore */ url)) as { default?: unknown }).default;
        return (typeof loaded === "function" ? await loaded() : loaded) as Hooks;
      } finally {
        URL.revokeObjectURL(url);
      }
    });
  }

  async #style(key: string): Promise<void> {
    if (this.#styles.has(key)) return;
    this.#styles.add(key);
    const style = document.createElement("style");
    style.textContent = await this.#source("data-nbsae-style", key);
    document.head.append(style);
  }

  async #source(attribute: string, key: string): Promise<string> {
    const found = [...document.querySelectorAll(`script[${attribute}]`)].find(
      (script) => script.getAttribute(attribute) === key,
    );
    if (!found) throw new Error(`This report does not hold the script ${key}.`);
    const text = found.textContent ?? "";
    return found.getAttribute("data-encoding") === "gzip+base64" ? inflate(b64decode(text)) : text;
  }
}

function remember<V>(made: Map<string, Promise<V>>, key: string, make: () => Promise<V>): Promise<V> {
  const known = made.get(key);
  if (known) return known;
  const value = make();
  made.set(key, value);
  return value;
}

/** Say under the static picture why it is only a picture. */
function explain(view: HTMLElement, error: unknown): void {
  const line = document.createElement("p");
  line.className = "nbsae-failed";
  line.setAttribute("role", "note");
  line.textContent = `Only the picture of this dashboard can be shown here. ${error instanceof Error ? error.message : error}`;
  view.append(line);
}

// Last: the classes above must exist before the first view is mounted.
outcome.ready = new Promise((resolve) => {
  const start = () => run().then(resolve);
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start, { once: true });
  else start();
});
