/** A widget model without a kernel: state that can be read and changed, messages that nobody answers. */

import { b64decode } from "./decode";

export interface SavedModel {
  module: string;
  style?: string | null;
  state: Record<string, unknown>;
  buffers?: { path: (string | number)[]; encoding: string; data: string }[];
}

type Listener = (...args: unknown[]) => void;

export interface ViewModel {
  get(key: string): unknown;
  set(key: string | Record<string, unknown>, value?: unknown): void;
  save_changes(): void;
  send(): void;
  on(event: string, listener: Listener): void;
  off(event?: string | null, listener?: Listener | null): void;
}

const NO_KERNEL = "no kernel: this is a saved view";

export class ReportModel {
  readonly #state: Record<string, unknown>;
  readonly #listeners = new Map<string, Set<Listener>>();

  constructor(saved: SavedModel) {
    this.#state = { ...saved.state };
    for (const { path, encoding, data } of saved.buffers ?? []) {
      if (encoding !== "base64") throw new Error(`A buffer is stored as ${encoding}; this script reads base64.`);
      place(this.#state, path, new DataView(b64decode(data).buffer));
    }
  }

  readonly experimental = { invoke: () => Promise.reject(new Error(NO_KERNEL)) };

  get(key: string): unknown {
    return this.#state[key];
  }

  set(key: string | Record<string, unknown>, value?: unknown): void {
    const changes = typeof key === "string" ? { [key]: value } : key;
    let changed = false;
    for (const [name, next] of Object.entries(changes)) {
      if (Object.is(this.#state[name], next)) continue;
      this.#state[name] = next;
      changed = true;
      this.#emit(`change:${name}`, this, next);
    }
    if (changed) this.#emit("change", this);
  }

  on(event: string, listener: Listener): void {
    for (const name of event.split(/\s+/)) {
      const known = this.#listeners.get(name) ?? new Set();
      this.#listeners.set(name, known.add(listener));
    }
  }

  off(event?: string | null, listener?: Listener | null): void {
    const names = event ? event.split(/\s+/) : [...this.#listeners.keys()];
    for (const name of names) {
      if (listener) this.#listeners.get(name)?.delete(listener);
      else this.#listeners.delete(name);
    }
  }

  /** The model as one view sees it: its listeners end with the view. */
  forView(signal: AbortSignal): ViewModel {
    const own: [string, Listener][] = [];
    signal.addEventListener("abort", () => {
      for (const [event, listener] of own) this.off(event, listener);
    });
    return {
      get: (key) => this.get(key),
      set: (key, value) => this.set(key, value),
      save_changes: () => {},
      send: () => {},
      on: (event, listener) => {
        own.push([event, listener]);
        this.on(event, listener);
      },
      off: (event, listener) => {
        if (event || listener) this.off(event, listener);
        else for (const [name, mine] of own) this.off(name, mine);
      },
    };
  }

  #emit(event: string, ...args: unknown[]): void {
    for (const listener of [...(this.#listeners.get(event) ?? [])]) listener(...args);
  }
}

/** Put a buffer where its path says; dictionaries and lists on the way are copied, never shared. */
function place(state: Record<string, unknown>, path: (string | number)[], value: DataView): void {
  let at: Record<string | number, unknown> = state;
  path.slice(0, -1).forEach((step) => {
    const inner = at[step];
    at[step] = Array.isArray(inner) ? [...inner] : { ...(inner as object) };
    at = at[step] as Record<string | number, unknown>;
  });
  const last = path.at(-1);
  if (last !== undefined) at[last] = value;
}

type Resolve = (id: string) => Promise<{ model: ReportModel; exports: unknown }>;

/** What anywidget 0.11 calls `host`; `kernel: false` says at once that requests have no one to go to. */
export function host(resolve: Resolve) {
  const id = (ref: unknown) => String(ref).replace(/^(anywidget:|IPY_MODEL_)/, "");
  return {
    kernel: false,
    getModel: async (ref: unknown) => (await resolve(id(ref))).model.forView(new AbortController().signal),
    getWidget: async (ref: unknown) => ({ exports: (await resolve(id(ref))).exports }),
  };
}
