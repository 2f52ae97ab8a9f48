/** What a dashboard's panels share: a few named values, and who wants to know when they change. */

export class State<S extends object> {
  readonly #listeners = new Map<keyof S, Set<() => void>>();

  /**
   * `fail` is told what a listener throws: one part that cannot be drawn leaves the others as they are. Without it the
   * error is the page's.
   */
  constructor(
    private values: S,
    private readonly fail: ((error: unknown) => void) | undefined = undefined,
  ) {}

  get<K extends keyof S>(key: K): S[K] {
    return this.values[key];
  }

  set<K extends keyof S>(key: K, value: S[K]): void {
    if (Object.is(this.values[key], value)) return;
    this.values = { ...this.values, [key]: value };
    for (const listener of [...(this.#listeners.get(key) ?? [])]) this.#run(listener);
  }

  /** Run `use` now and after every change of one of `keys`; the returned function stops it. */
  on(keys: (keyof S)[], use: () => void): () => void {
    for (const key of keys) this.#listeners.set(key, (this.#listeners.get(key) ?? new Set()).add(use));
    this.#run(use);
    return () => {
      for (const key of keys) this.#listeners.get(key)?.delete(use);
    };
  }

  #run(use: () => void): void {
    try {
      use();
    } catch (error) {
      if (!this.fail) throw error;
      this.fail(error);
    }
  }
}
