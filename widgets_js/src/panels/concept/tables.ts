/** The tables of the concept dashboard, with their columns named once. Trait and column names are Python's. */

import { type Numbers, type Table, Thumbs, unpack } from "../../core/wire";

export interface About {
  title: string;
  site: string;
  rows: number;
  d_sae: number;
  /** How a name was accepted, in words. */
  rule: string;
  prompts: string[];
  /** Hits of one retrieval. */
  hits: number;
  /** Whether there is anything to edit with. */
  edits: boolean;
}

/** Named latents, one row each, the accepted ones first. */
export class Concepts {
  readonly length: number;
  readonly latent: Numbers;
  readonly density: Numbers;
  readonly cosine: Numbers;
  readonly margin: Numbers;
  readonly auc: Numbers;
  readonly accepted: Numbers;
  readonly high: Numbers;
  readonly #table: Table;

  constructor(table: Table) {
    this.#table = table;
    this.length = table.rows;
    this.latent = table.numbers("latent");
    this.density = table.numbers("density");
    this.cosine = table.numbers("cosine");
    this.margin = table.numbers("margin");
    this.auc = table.numbers("data_auc");
    this.accepted = table.numbers("accepted");
    this.high = table.numbers("high");
  }

  /** What to call it: the user's label, else the name that was found. */
  name(row: number): string {
    return this.label(row) ?? this.word(row) ?? `latent ${this.latent[row]}`;
  }

  label(row: number): string | undefined {
    return this.#text("label", row);
  }

  word(row: number): string | undefined {
    return this.#text("name", row);
  }

  comment(row: number): string | undefined {
    return this.#text("comment", row);
  }

  attribute(row: number): string | undefined {
    return this.#text("data_name", row);
  }

  runnerUps(row: number): { word: string; cosine: number }[] {
    const words = (this.#table.json("runner_ups")[row] ?? []) as string[];
    const cosines = this.#table.list("runner_up_cosines", row);
    return words.map((word, place) => ({ word, cosine: cosines[place] ?? Number.NaN }));
  }

  /** Whether the word and the labels say the same; undefined where one is missing. */
  agrees(row: number): boolean | undefined {
    const value = this.#table.numbers("agrees")[row] ?? -1;
    return value < 0 ? undefined : value > 0;
  }

  rowOf(latent: number): number {
    return this.latent.indexOf(latent);
  }

  #text(column: string, row: number): string | undefined {
    return (this.#table.json(column)[row] as string | null) ?? undefined;
  }
}

export interface Picture {
  input: number;
  key: string;
  url: string | undefined;
}

export interface Hit extends Picture {
  score: number;
}

/** What one query finds, and what the model says of it. */
export interface Answer {
  hits: Hit[];
  /** One per prompt; empty where there are none. */
  probabilities: ArrayLike<number>;
  /** Of the edited embedding to the original. */
  cosine: number;
}

export interface Query extends Picture {
  /** Number of the query among those of its message. */
  number: number;
  row: number;
  before: Answer;
  /** The strongest latents of this input. */
  active: { latent: number; act: number }[];
}

/** The queries, edits and pictures of one message or of the saved view. */
export class Answers {
  readonly queries: Query[];
  readonly #tables: Record<string, Table>;
  readonly #thumbs: Thumbs;
  readonly #cells = new Map<string, number>();
  readonly #steps = new Map<number, number[]>();

  constructor(header: unknown, bytes: unknown, thumbsHeader: unknown, thumbs: unknown) {
    this.#tables = unpack(header, bytes);
    this.#thumbs = new Thumbs(thumbsHeader, thumbs);
    const queries = this.#table("queries");
    const before = this.#table("before");
    this.queries = Array.from({ length: queries.rows }, (_, number) => ({
      ...this.#picture(queries.numbers("input")[number] ?? 0),
      number,
      row: queries.numbers("row")[number] ?? 0,
      before: this.#answer(before, number),
      active: Array.from(queries.list("active", number), (latent, place) => ({
        latent,
        act: queries.list("active_acts", number)[place] ?? 0,
      })),
    }));
    const cells = this.#tables.cells;
    if (!cells) return;
    for (let row = 0; row < cells.rows; row += 1) {
      const [query, latent, value] = ["query", "latent", "value"].map((name) => cells.numbers(name)[row] ?? 0);
      this.#cells.set(`${query} ${latent} ${value}`, row);
      const steps = this.#steps.get(latent as number) ?? [];
      if (!steps.includes(value as number)) steps.push(value as number);
      this.#steps.set(latent as number, steps);
    }
    for (const steps of this.#steps.values()) steps.sort((a, b) => a - b);
  }

  /** The values of a latent for which answers are kept, ascending. */
  steps(latent: number): number[] {
    return this.#steps.get(latent) ?? [];
  }

  /** The answer that is kept for an edit of one latent. */
  after(query: number, latent: number, value: number): Answer | undefined {
    const row = this.#cells.get(`${query} ${latent} ${value}`);
    return row === undefined ? undefined : this.#answer(this.#table("cells"), row);
  }

  /** The only answer of a message. */
  first(): Answer {
    return this.#answer(this.#table("cells"), 0);
  }

  dispose(): void {
    this.#thumbs.dispose();
  }

  #table(name: string): Table {
    const table = this.#tables[name];
    if (!table) throw new Error(`The answer has no table ${name}. Run the cell again and reload the page.`);
    return table;
  }

  #answer(table: Table, row: number): Answer {
    const scores = table.list("scores", row);
    const hits = Array.from(table.list("hits", row), (input, place) => ({
      ...this.#picture(input),
      score: scores[place] ?? Number.NaN,
    }));
    return {
      hits,
      probabilities: table.list("probabilities", row),
      cosine: table.numbers("cosine")[row] ?? Number.NaN,
    };
  }

  /** Numbers of inputs in a message are positions in its own table. */
  #picture(place: number): Picture {
    const inputs = this.#table("inputs");
    return {
      input: inputs.numbers("input_id")[place] ?? 0,
      key: String(inputs.json("key")[place] ?? ""),
      url: this.#thumbs.url(inputs.numbers("thumb")[place] ?? -1),
    };
  }
}
