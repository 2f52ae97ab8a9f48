/** The tables of the feature dashboard, with their columns named once. Trait and column names are Python's. */

import { type Numbers, type Table, Thumbs, unpack } from "../core/wire";

export interface About {
  title: string;
  site: string;
  modality: "image" | "text";
  pooled: boolean;
  grid: [number, number] | null;
  prefix_tokens: number;
  positions: number;
  rows: number;
  d_sae: number;
  budgets: number[];
  widths: number[];
  rule: string;
  /** Whether a running kernel can read a text of the user. */
  reads?: boolean;
}

/** What the user says about a latent. */
export interface Note {
  label: string | null;
  /** 1 … `STARS`. */
  rating: number | null;
  comment: string | null;
}

export const STARS = 5;

/** Every latent, one row each; row number and latent number are the same. */
export class Latents {
  readonly length: number;
  readonly density: Numbers;
  readonly active_rows: Numbers;
  readonly mean: Numbers;
  readonly max: Numbers;
  readonly level: Numbers;
  readonly dead: Numbers;
  readonly names: (string | null)[] | undefined;
  /** Whether the analysis keeps notes. */
  notable = false;
  notes: ReadonlyMap<number, Note> = new Map();
  /** Some latent has a name or a label. */
  named = false;

  constructor(table: Table) {
    this.length = table.rows;
    this.density = table.numbers("density");
    this.active_rows = table.numbers("active_rows");
    this.mean = table.numbers("mean");
    this.max = table.numbers("max");
    this.level = table.numbers("level");
    this.dead = table.numbers("dead");
    this.names = table.has("name") ? (table.json("name") as (string | null)[]) : undefined;
  }

  /** The user's label, else the name that was found. */
  name(latent: number): string | undefined {
    return this.notes.get(latent)?.label || this.found(latent);
  }

  found(latent: number): string | undefined {
    return this.names?.[latent] ?? undefined;
  }

  /** From the trait: `{latent: note}`, or null where the analysis keeps none. */
  readNotes(trait: unknown): void {
    this.notable = typeof trait === "object" && trait !== null;
    this.notes = new Map(
      Object.entries((trait ?? {}) as Record<string, Note>).map(([key, note]) => [Number(key), note]),
    );
    this.named = this.names !== undefined || [...this.notes.values()].some(({ label }) => label);
  }
}

export interface Example {
  /** 0 … 9 from weak to strong, -1 for a top example. */
  interval: number;
  rank: number;
  act: number;
  token: number;
  /** Patch or shown token of the peak, -1 where it is none. */
  at: number;
  key: string;
  thumb: string | undefined;
  width: number;
  height: number;
  /** Heat map over the grid (image), or active values (text). */
  map: Numbers;
  /** Text: which shown token each value of `map` belongs to. */
  map_at: Numbers;
  context?: { start: number; number: number; before: boolean; after: boolean; tokens: string[] };
  /** Text: what the latent does at each shown token to the log-probability of the next one, where it was measured. */
  effect?: Numbers;
}

/** A token that the latent writes for or reads: see `PROMOTED` of the analysis. */
export interface Promoted {
  /** Decoder row ("write") or encoder column ("read") against the unembedding. */
  side: "write" | "read";
  suppressed: boolean;
  token: string;
  token_id: number;
  /** Per unit of activation, about the mean over the vocabulary, for a last row of spread 1. */
  logit: number;
  /** Chance that a random direction has as good a best token. */
  p: number;
}

/** A text of the user: its tokens with the activation of one latent, and the strongest latents on it. */
export interface Reading {
  tokens: string[];
  act: Numbers;
  /** Log-probability of the token that follows, minus that without the latent; NaN where it is not known. */
  effect: Numbers;
  strongest: { latent: number; act: number; token: number }[];
}

export interface Card {
  latent: number;
  histogram: Numbers;
  histogram_max: number;
  /** Upper end of the colours of this card. */
  scale: number;
  examples: Example[];
  /** Strongest first within each side and sign; empty for an analysis without a lens. */
  promoted: Promoted[];
  /** Some examples, or parts of texts, were left out of the saved view. */
  partial: boolean;
}

/** The cards of one message or of the saved view. */
export class CardSet {
  readonly #rows: Map<number, number>;
  readonly #thumbs: Thumbs;
  readonly #tables: Record<string, Table>;

  /** Without anything, a set of no cards. */
  constructor(header?: unknown, bytes?: unknown, thumbsHeader?: unknown, thumbs?: unknown) {
    this.#tables = header ? unpack(header, bytes) : {};
    this.#thumbs = new Thumbs(thumbsHeader, thumbs);
    const latents = header ? this.#table("cards").numbers("latent") : [];
    this.#rows = new Map([...latents].map((latent, row) => [latent, row]));
  }

  has(latent: number): boolean {
    return this.#rows.has(latent);
  }

  get size(): number {
    return this.#rows.size;
  }

  card(latent: number): Card | undefined {
    const row = this.#rows.get(latent);
    if (row === undefined) return undefined;
    const cards = this.#table("cards");
    const examples = this.#examples(row);
    const offered = value(cards, "top_offered", row) + value(cards, "interval_offered", row);
    return {
      latent,
      histogram: cards.list("histogram", row),
      histogram_max: value(cards, "histogram_max", row),
      scale: value(cards, "scale", row),
      examples,
      promoted: this.#promoted(row),
      partial: examples.length < offered || examples.some(({ context }) => context?.before || context?.after),
    };
  }

  dispose(): void {
    this.#thumbs.dispose();
  }

  #table(name: string): Table {
    const table = this.#tables[name];
    if (!table) throw new Error(`The cards have no table ${name}. Run the cell again and reload the page.`);
    return table;
  }

  #examples(card: number): Example[] {
    const table = this.#table("examples");
    const owner = table.numbers("card");
    const inputs = this.#table("inputs");
    const found: Example[] = [];
    for (let row = lowerBound(owner, card); row < table.rows && owner[row] === card; row += 1) {
      const input = value(table, "input", row);
      const context = this.#context(value(table, "context", row));
      found.push({
        interval: value(table, "interval", row),
        rank: value(table, "rank", row),
        act: value(table, "act", row),
        token: value(table, "token", row),
        at: value(table, "at", row),
        key: String(inputs.json("key")[input] ?? ""),
        thumb: this.#thumbs.url(value(inputs, "thumb", input)),
        width: value(inputs, "width", input),
        height: value(inputs, "height", input),
        map: table.list("map", row),
        map_at: table.list("map_at", row),
        ...(context ? { context } : {}),
      });
    }
    return found;
  }

  #promoted(card: number): Promoted[] {
    const table = this.#tables.promoted;
    const found: Promoted[] = [];
    if (!table) return found;
    const owner = table.numbers("card");
    for (let row = lowerBound(owner, card); row < table.rows && owner[row] === card; row += 1) {
      found.push({
        side: value(table, "reads", row) ? "read" : "write",
        suppressed: value(table, "suppressed", row) > 0,
        token: String(table.json("token")[row] ?? ""),
        token_id: value(table, "token_id", row),
        logit: value(table, "logit", row),
        p: value(table, "p", row),
      });
    }
    return found;
  }

  #context(row: number): Example["context"] {
    const table = this.#tables.contexts;
    if (!table || row < 0) return undefined;
    return {
      start: value(table, "start", row),
      number: value(table, "number", row),
      before: value(table, "before", row) > 0,
      after: value(table, "after", row) > 0,
      tokens: table.json("tokens")[row] as string[],
    };
  }
}

/** The answer to a text of the user. */
export function readingOf(header: unknown, bytes: unknown): Reading {
  const { tokens, strongest } = unpack(header, bytes);
  if (!tokens || !strongest) throw new Error("The kernel's answer holds no tokens. Run the cell again.");
  return {
    tokens: tokens.json("token") as string[],
    act: tokens.numbers("act"),
    effect: tokens.numbers("effect"),
    strongest: Array.from({ length: strongest.rows }, (_, row) => ({
      latent: value(strongest, "latent", row),
      act: value(strongest, "act", row),
      token: value(strongest, "token", row),
    })),
  };
}

function value(table: Table, column: string, row: number): number {
  return table.numbers(column)[row] ?? Number.NaN;
}

/** First position in sorted numbers that is not below `wanted`. */
function lowerBound(sorted: Numbers, wanted: number): number {
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((sorted[middle] as number) < wanted) low = middle + 1;
    else high = middle;
  }
  return low;
}
