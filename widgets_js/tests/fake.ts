/** A widget model whose other side is the test. */

import type { AnyModel, Life } from "../src/core/life";

export class FakeModel implements AnyModel {
  readonly sent: Record<string, unknown>[] = [];
  saves = 0;
  readonly listeners = new Map<string, Set<(...args: never[]) => void>>();

  constructor(readonly state: Record<string, unknown> = {}) {}

  get(key: string): unknown {
    return this.state[key];
  }

  set(key: string, value: unknown): void {
    this.state[key] = value;
    this.emit(`change:${key}`);
  }

  save_changes(): void {
    this.saves += 1;
  }

  send(content: unknown): void {
    this.sent.push(content as Record<string, unknown>);
  }

  on(event: string, listener: (...args: never[]) => void): void {
    this.listeners.set(event, (this.listeners.get(event) ?? new Set()).add(listener));
  }

  off(event?: string | null, listener?: ((...args: never[]) => void) | null): void {
    if (event && listener) this.listeners.get(event)?.delete(listener);
  }

  emit(event: string, ...args: unknown[]): void {
    for (const listener of [...(this.listeners.get(event) ?? [])]) listener(...(args as never[]));
  }

  answer(content: unknown, buffers: unknown[] = []): void {
    this.emit("msg:custom", content, buffers);
  }

  get listening(): number {
    return [...this.listeners.values()].reduce((sum, one) => sum + one.size, 0);
  }
}

export function life(kernelPossible = true): Life & { close(): void } {
  const controller = new AbortController();
  const disposers: (() => void)[] = [];
  return {
    signal: controller.signal,
    kernelPossible,
    add: (dispose) => void disposers.push(dispose),
    close: () => {
      controller.abort();
      for (const dispose of disposers.reverse()) dispose();
    },
  };
}
