/** What the training monitor's traits hold: where each run stands, its kept lines, and its last look at rows. */

import { type Table, Thumbs, unpack } from "../../core/wire";

export interface Quality {
  k: number | null;
  width: number | null;
  /** Column of the log. */
  name: string;
  /** Mean over the last ten logged batches. */
  fvu: number;
}

export interface Run {
  name: string;
  state: "ready" | "running" | "paused" | "stopping" | "stopped" | "done" | "failed";
  why: string;
  /** The last line of the log, as it is; null is no finite number. */
  latest: Record<string, number | null>;
  quality: Quality[];
  lines: number;
  stride: number;
  /** Whether its session is still there to be asked. */
  reachable: boolean;
  step?: number;
  steps?: number;
  batch_rows?: number;
  /** Rows for which a latent is silent before it counts as dead. */
  dead_after?: number;
  seconds?: number;
  rate?: number | null;
  left?: number | null;
  memory?: number | null;
  title?: string;
}

export interface Note {
  run: string;
  text: string;
  error: boolean;
  /** Number of the request that asked for it. */
  asked: number | null;
  at: number;
}

export interface About {
  version: number;
  title: string;
  most: number;
}

/** The kept lines of one run. */
export class Series {
  readonly steps: number[];
  readonly columns: string[];

  constructor(
    private readonly table: Table,
    private readonly batchRows: number,
  ) {
    this.steps = [...table.numbers("step")];
    this.columns = table.columns;
  }

  /** A column by name; what is not there is not a number. */
  of(name: string): number[] {
    if (name === "rows") return this.steps.map((step) => step * this.batchRows);
    if (name === "rate") return this.#rate();
    return this.table.has(name) ? [...this.table.numbers(name)] : this.steps.map(() => Number.NaN);
  }

  /** Rows per second between each line and the one before. */
  #rate(): number[] {
    const seconds = this.of("seconds");
    return this.steps.map((step, at) => {
      const [before, since] = at ? [this.steps[at - 1] ?? 0, seconds[at - 1] ?? 0] : [0, 0];
      const took = (seconds[at] ?? Number.NaN) - since;
      return took > 0 ? ((step - before) * this.batchRows) / took : Number.NaN;
    });
  }
}

/** Columns of the FVU, sparsest first. */
export function levelNames(run: Run): string[] {
  return run.quality.map(({ name }) => name);
}

/** `fvu_k16_w512` as "k = 16, first 512"; `fvu` as "own rule". */
export function levelText(name: string): string {
  const [, k, width] = /^fvu(?:_k(\d+))?(?:_w(\d+))?$/.exec(name) ?? [];
  const parts = [k ? `k = ${k}` : "", width ? `first ${width}` : ""].filter(Boolean);
  return parts.join(", ") || "own rule";
}

export function seriesOf(header: unknown, bytes: unknown, runs: Run[]): (Series | undefined)[] {
  const tables = unpack(header, bytes);
  return runs.map((run, at) => {
    const table = tables[`run${at}`];
    return table?.has("step") ? new Series(table, run.batch_rows ?? 1) : undefined;
  });
}

/** One row that is shown: what it is, and its reconstructions. */
export interface Sample {
  input: number;
  x: ArrayLike<number>;
  /** One after the other, sparsest budget first. */
  xHat: ArrayLike<number>;
  explained: ArrayLike<number>;
}

export interface Forming {
  latent: number;
  active: number;
  kept: number;
  chance: number;
  inputs: number[];
  acts: number[];
}

/** The last looks of all runs, and the inputs that they name. Pictures are addresses that end with it. */
export class Looks {
  readonly #tables: Record<string, Table>;
  readonly #thumbs: Thumbs;

  constructor(header: unknown, bytes: unknown, thumbsHeader: unknown, thumbs: unknown) {
    this.#tables = unpack(header, bytes);
    this.#thumbs = new Thumbs(thumbsHeader, thumbs);
  }

  has(run: number): boolean {
    return this.#tables[`sample${run}`] !== undefined;
  }

  /** Budgets of a run's look, its step, and how many rows were looked at. */
  levels(run: number): { ks: number[]; fvu: number[]; step: number; probe: number } {
    const table = this.#tables[`levels${run}`];
    if (!table) return { ks: [], fvu: [], step: 0, probe: 0 };
    const [step, probe] = [table.numbers("step")[0] ?? 0, table.numbers("probe")[0] ?? 0];
    return { ks: [...table.numbers("k")], fvu: [...table.numbers("fvu")], step, probe };
  }

  samples(run: number): Sample[] {
    const table = this.#tables[`sample${run}`];
    if (!table) return [];
    return Array.from(table.numbers("row"), (input, row) => ({
      input,
      x: table.list("x", row),
      xHat: table.list("x_hat", row),
      explained: table.list("explained", row),
    }));
  }

  forming(run: number): Forming[] {
    const table = this.#tables[`forming${run}`];
    if (!table) return [];
    return Array.from(table.numbers("latent"), (latent, row) => ({
      latent,
      active: table.numbers("active")[row] ?? 0,
      kept: table.numbers("kept")[row] ?? Number.NaN,
      chance: table.numbers("chance")[row] ?? Number.NaN,
      inputs: [...table.list("rows", row)],
      acts: [...table.list("acts", row)],
    }));
  }

  /** Key, text and picture of an input, and which of its tokens is meant. */
  input(number: number): { key: string; text: string; token: number; url: string | undefined } {
    const table = this.#tables.inputs;
    if (!table) return { key: "", text: "", token: 0, url: undefined };
    return {
      key: (table.json("key") as string[])[number] ?? "",
      text: (table.json("text") as string[])[number] ?? "",
      token: table.numbers("token")[number] ?? 0,
      url: this.#thumbs.url(table.numbers("thumb")[number] ?? -1),
    };
  }

  dispose(): void {
    this.#thumbs.dispose();
  }
}
