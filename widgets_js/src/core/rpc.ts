/**
 * Requests to the kernel: `{id, kind, …}` out, `{id, ok, …}` and buffers back, every one with an end.
 *
 * A ping at the first render decides whether there is a kernel. An answer that comes late (a cell was running) still
 * counts: `none` becomes `live`. Where the host says that its kernel is busy, nobody is called missing.
 */

import { h } from "./dom";
import { ShownError } from "./errors";
import type { AnyModel, Life } from "./life";

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
  since: number;
}

export const PING_MS = 1_000;
export const TIMEOUT_MS = 30_000;
const WAIT_WORDS_MS = 300;
const BUSY_WORDS_MS = 2_000;
/** A longer text is not sent: the kernel would only refuse it, after the page had copied it some times. */
const MOST_CHARS = 100_000;

export class Rpc {
  kernel: Kernel = "asking";
  readonly #pending = new Map<number, Pending>();
  readonly #listeners = new Set<(kernel: Kernel) => void>();
  readonly #readers = new Set<() => void>();
  #saying: ReturnType<typeof setTimeout> | undefined;
  // Several views share one model and see each other's answers.
  #next = Math.floor(Math.random() * 2 ** 40);

  constructor(
    private readonly model: AnyModel,
    private readonly life: Life,
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
    let timer: ReturnType<typeof setTimeout>;
    const decide = () => {
      if (this.kernel === "asking" && !this.#busy()) this.#become("none");
      if (this.kernel === "asking") timer = setTimeout(decide, PING_MS);
    };
    timer = setTimeout(decide, PING_MS);
    life.add(() => clearTimeout(timer));
  }

  /** What a reader should know about the kernel now; empty where there is nothing to say. */
  get words(): string {
    if (this.kernel === "none") return "saved view";
    const waited = performance.now() - Math.min(...[...this.#pending.values()].map(({ since }) => since));
    if (waited >= BUSY_WORDS_MS) return "the kernel is busy: it answers after the running cell";
    return this.kernel === "live" && waited >= WAIT_WORDS_MS ? "asking the kernel …" : "";
  }

  /** Ask; rejects with a `ShownError` when the kernel says no or does not answer in time. */
  request(
    kind: string,
    what: Record<string, unknown> = {},
    buffers: ArrayBuffer[] = [],
    timeout_ms = TIMEOUT_MS,
  ): Promise<Reply> {
    const id = this.#next++;
    if (Object.values(what).some((one) => typeof one === "string" && one.length > MOST_CHARS)) {
      return Promise.reject(new ShownError(`The text is longer than ${MOST_CHARS} characters. Give a shorter one.`));
    }
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#pending.delete(id);
        this.#say();
        reject(
          new ShownError(
            `The kernel did not answer within ${timeout_ms / 1000} s.`,
            "A long cell may be running. Wait for it, or restart the kernel and run all again.",
          ),
        );
      }, timeout_ms);
      this.#pending.set(id, { resolve, reject, timer, since: performance.now() });
      this.#say();
      this.model.send({ id, kind, ...what }, undefined, buffers);
    });
  }

  onKernel(use: (kernel: Kernel) => void): () => void {
    this.#listeners.add(use);
    return () => this.#listeners.delete(use);
  }

  /** Run `use` whenever `words` may have changed. */
  onWords(use: () => void): () => void {
    this.#readers.add(use);
    return () => this.#readers.delete(use);
  }

  #receive(content: unknown, buffers: unknown): void {
    if (typeof content !== "object" || content === null) return;
    const message = content as Record<string, unknown>;
    if ("refused" in message) this.life.fail?.(shown(message.refused));
    if (!("id" in message)) return;
    this.#become("live");
    const waiting = this.#pending.get(message.id as number);
    if (!waiting) return;
    clearTimeout(waiting.timer);
    this.#pending.delete(message.id as number);
    this.#say();
    if (message.ok === true) {
      waiting.resolve({ content: message, buffers: Array.isArray(buffers) ? buffers : [] });
      return;
    }
    waiting.reject(shown(message.error));
  }

  /** Whether the host says that a cell is running; JupyterLab's widget manager knows its kernel. */
  #busy(): boolean {
    return this.model.widget_manager?.kernel?.status === "busy";
  }

  /** Tell what there is to say, now and when waiting becomes long. */
  #say(): void {
    clearTimeout(this.#saying);
    for (const reader of this.#readers) reader();
    const oldest = Math.min(...[...this.#pending.values()].map(({ since }) => since));
    const next = [WAIT_WORDS_MS, BUSY_WORDS_MS].find((after) => performance.now() < oldest + after);
    if (this.#pending.size && next) this.#saying = setTimeout(() => this.#say(), oldest + next - performance.now() + 1);
  }

  #become(kernel: Kernel): void {
    if (this.kernel === kernel) return;
    this.kernel = kernel;
    for (const listener of [...this.#listeners]) listener(kernel);
    this.#say();
  }

  #close(): void {
    clearTimeout(this.#saying);
    for (const { timer } of this.#pending.values()) clearTimeout(timer);
    this.#pending.clear();
    this.#listeners.clear();
    this.#readers.clear();
  }
}

/** The kernel's account of an error. */
function shown(given: unknown): ShownError {
  const { cause, fix, details } = (given ?? {}) as Record<string, unknown>;
  return new ShownError(
    String(cause ?? "The kernel gave an error without a cause."),
    String(fix ?? ""),
    String(details ?? ""),
  );
}

/** The place in a dashboard's bar that says how the kernel is; `saved` is what a saved view holds, in words. */
export function kernelStatus(rpc: Rpc, life: Life, saved: string): HTMLElement {
  const status = h("span", { class: "nbs-status", role: "status" });
  const say = () => {
    status.textContent = rpc.words;
    status.title = rpc.kernel === "none" ? saved : "";
  };
  life.add(rpc.onWords(say));
  say();
  return status;
}
