/**
 * Requests to the kernel: `{id, kind, …}` out, `{id, ok, …}` and buffers back, every one with an end.
 *
 * A ping at the first render decides whether there is a kernel. An answer that comes late (a cell was running) still
 * counts: `none` becomes `live`.
 */

import { ShownError } from "./errors";
import type { AnyModel, Life } from "./host";

/** `asking`: nobody has answered yet. */
export type Kernel = "asking" | "live" | "none";

export interface Reply {
  content: Record<string, unknown>;
  buffers: unknown[];
}

interface Pending {
  resolve(reply: Reply): void;
  reject(error: Error): void;
  timer: ReturnType<typeof setTimeout>;
}

export const PING_MS = 1_000;
export const TIMEOUT_MS = 30_000;

export class Rpc {
  kernel: Kernel = "asking";
  readonly #pending = new Map<number, Pending>();
  readonly #listeners = new Set<(kernel: Kernel) => void>();
  // Several views share one model and see each other's answers.
  #next = Math.floor(Math.random() * 2 ** 40);

  constructor(
    private readonly model: AnyModel,
    life: Life,
  ) {
    const onMessage = (content: unknown, buffers: unknown) => this.#receive(content, buffers);
    model.on("msg:custom", onMessage as (...args: never[]) => void);
    life.add(() => {
      model.off("msg:custom", onMessage as (...args: never[]) => void);
      this.#close();
    });
    if (!life.kernelPossible) {
      this.kernel = "none";
      return;
    }
    this.request("ping").catch(() => {});
    const timer = setTimeout(() => this.kernel === "asking" && this.#become("none"), PING_MS);
    life.add(() => clearTimeout(timer));
  }

  /** Ask; rejects with a `ShownError` when the kernel says no or does not answer in time. */
  request(
    kind: string,
    what: Record<string, unknown> = {},
    buffers: ArrayBuffer[] = [],
    timeout_ms = TIMEOUT_MS,
  ): Promise<Reply> {
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#pending.delete(id);
        reject(
          new ShownError(
            `The kernel did not answer within ${timeout_ms / 1000} s.`,
            "A long cell may be running. Wait for it, or restart the kernel and run the notebook again.",
          ),
        );
      }, timeout_ms);
      this.#pending.set(id, { resolve, reject, timer });
      this.model.send({ id, kind, ...what }, undefined, buffers);
    });
  }

  onKernel(use: (kernel: Kernel) => void): () => void {
    this.#listeners.add(use);
    return () => this.#listeners.delete(use);
  }

  #receive(content: unknown, buffers: unknown): void {
    if (typeof content !== "object" || content === null || !("id" in content)) return;
    const message = content as Record<string, unknown>;
    this.#become("live");
    const waiting = this.#pending.get(message.id as number);
    if (!waiting) return;
    clearTimeout(waiting.timer);
    this.#pending.delete(message.id as number);
    if (message.ok === true) {
      waiting.resolve({ content: message, buffers: Array.isArray(buffers) ? buffers : [] });
      return;
    }
    const error = (message.error ?? {}) as Record<string, unknown>;
    waiting.reject(
      new ShownError(
        String(error.cause ?? "The kernel answered with an error that it does not explain."),
        String(error.fix ?? ""),
        String(error.details ?? ""),
      ),
    );
  }

  #become(kernel: Kernel): void {
    if (this.kernel === kernel) return;
    this.kernel = kernel;
    for (const listener of [...this.#listeners]) listener(kernel);
  }

  #close(): void {
    for (const { timer } of this.#pending.values()) clearTimeout(timer);
    this.#pending.clear();
    this.#listeners.clear();
  }
}
