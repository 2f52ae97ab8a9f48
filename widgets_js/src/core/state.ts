/** What a dashboard's panels share: a few named values, and who wants to know when they change. */

export class State<S extends object> {
  readonly #listeners = new Map<keyof S, Set<() => void>>();

  constructor(private values: S) {}

  get<K extends keyof S>(key: K): S[K] {
    return this.values[key];
  }

  set<K extends keyof S>(key: K, value: S[K]): void {
    if (Object.is(this.values[key], value)) return;
    this.values = { ...this.values, [key]: value };
    for (const listener of [...(this.#listeners.get(key) ?? [])]) listener();
  }

  /** Run `use` now and after every change of one of `keys`; the returned function stops it. */
  on(keys: (keyof S)[], use: () => void): () => void {
    for (const key of keys) this.#listeners.set(key, (this.#listeners.get(key) ?? new Set()).add(use));
    use();
    return () => {
      for (const key of keys) this.#listeners.get(key)?.delete(use);
    };
  }
}
