/** The tables of the bias dashboard, with their columns named once. Trait and column names are Python's. */

import { type Numbers, type Table, Thumbs, unpack } from "../../core/wire";

export interface About {
  title: string;
  target: string;
  min_n: number;
  q: number;
  caution: string;
  facts: [string, string][];
  /** Concepts of the report; those beyond the tables were left out. */
  concepts: number;
  /** How many of the first ones have their details in the saved view. */
  saved: number;
  /** Curves of single inputs per saved concept; null: all of them. */
  images: number | null;
  inputs: number;
  thumbs: number;
  /** Whether the kernel has pictures or texts. */
  pictures: boolean;
}

export type Ranking = "association" | "conditional" | "reliance";

/** One measured effect: of a concept between groups, or on an output of the classifier. */
export interface Effect {
  concept: number;
  /** Group or output, a position in the labels. */
  side: number;
  /** What it is conditional on; -1: nothing. */
  given: number;
  effect: number;
  low: number;
  high: number;
  n: number;
  n_rest: number;
  q: number;
  masked: boolean;
  flagged: boolean;
  table: Table;
  row: number;
}

export interface Interval {
  value: number;
  low: number;
  high: number;
}

export interface ErrorLine {
  group: number;
  level: number;
  n: number;
  base_rate: number;
  accuracy: Interval;
  tpr: Interval;
  fpr: Interval;
  calibration: number;
  ece: number;
  masked: boolean;
}

/** How far a rate of a group lies from that of the others. */
export interface Gap extends Interval {
  group: number;
  versus: number;
  measure: string;
  n: number;
  n_rest: number;
  q: number;
  masked: boolean;
}

export interface Curve {
  output: number;
  value: Numbers;
  mean: Numbers;
  ci_low: Numbers;
  ci_high: Numbers;
  control_low: Numbers;
  control_high: Numbers;
}

export interface ImageCurve {
  input: number;
  /** Activations that the concept is set to. */
  value: Numbers;
  probability: number[];
}

export interface Example {
  group: number;
  input: number;
  act: number;
}

export interface Histogram {
  group: number;
  counts: Numbers;
  max: number;
}

const STEPS = 65_535;

export function value(table: Table, column: string, row: number): number {
  return table.numbers(column)[row] ?? Number.NaN;
}

function table(tables: Record<string, Table>, name: string): Table {
  const found = tables[name];
  if (!found) throw new Error(`The state has no table ${name}. Run the cell again and reload the page.`);
  return found;
}

/** The tables of the whole report. */
export class Report {
  readonly latent: Numbers;
  readonly names: string[];
  readonly tables: Record<string, Table>;
  labels: string[];
  readonly #effects: Partial<Record<Ranking, Effect[]>> = {};

  constructor(
    header: unknown,
    bytes: unknown,
    readonly about: About,
  ) {
    this.tables = unpack(header, bytes);
    this.latent = table(this.tables, "concepts").numbers("latent");
    this.names = table(this.tables, "concepts").json("name") as string[];
    this.labels = table(this.tables, "labels").json("text") as string[];
  }

  get length(): number {
    return this.names.length;
  }

  conceptOf(latent: number): number {
    return Array.prototype.indexOf.call(this.latent, latent);
  }

  label(code: number): string {
    return this.labels[code] ?? "";
  }

  table(name: string): Table {
    return table(this.tables, name);
  }

  /** Every line of one of the rankings. */
  effects(name: Ranking): Effect[] {
    const known = this.#effects[name] ?? effects(this.table(name), this.about.q);
    this.#effects[name] = known;
    return known;
  }

  /** Whole groups, without a concept. */
  errors(): ErrorLine[] {
    return rows(this.table("errors")).map((row) => errorLine(this.table("errors"), row));
  }

  /** Of several classes, each against the others: lines by class. */
  classErrors(): Map<number, ErrorLine[]> {
    const found = this.table("class_errors");
    const by = new Map<number, ErrorLine[]>();
    for (const row of rows(found)) {
      const output = value(found, "output", row);
      by.set(output, [...(by.get(output) ?? []), errorLine(found, row)]);
    }
    return by;
  }

  gaps(): Gap[] {
    const found = this.table("gaps");
    const measures = found.json("measure") as string[];
    return rows(found).map((row) => ({
      group: value(found, "group", row),
      versus: value(found, "versus", row),
      measure: measures[row] ?? "",
      value: value(found, "gap", row),
      low: value(found, "ci_low", row),
      high: value(found, "ci_high", row),
      n: value(found, "n", row),
      n_rest: value(found, "n_rest", row),
      q: value(found, "q_value", row),
      masked: value(found, "masked", row) > 0,
    }));
  }

  /** Examples that belong to a group or a query, not to a concept. */
  shown(): Example[] {
    const examples = this.table("shown");
    return rows(examples).map((row) => example(examples, row));
  }
}

/** What the cards of some concepts show: those of the saved view, or one that the kernel gave. */
export class Details {
  readonly tables: Record<string, Table>;
  readonly #rows = new Map<string, Map<number, number[]>>();

  constructor(
    header: unknown,
    bytes: unknown,
    /** Numbers of the concepts; those of the saved view are the first ones. */
    readonly has: (concept: number) => boolean,
  ) {
    this.tables = unpack(header, bytes);
  }

  levels(concept: number): ErrorLine[] {
    return this.#of("levels", concept).map((row) => errorLine(table(this.tables, "levels"), row));
  }

  curves(concept: number): Curve[] {
    const found = table(this.tables, "curves");
    return this.#of("curves", concept).map((row) => ({
      output: value(found, "output", row),
      value: found.list("value", row),
      mean: found.list("mean", row),
      ci_low: found.list("ci_low", row),
      ci_high: found.list("ci_high", row),
      control_low: found.list("control_low", row),
      control_high: found.list("control_high", row),
    }));
  }

  imageCurves(concept: number, output: number): ImageCurve[] {
    const found = table(this.tables, "image_curves");
    let at: Numbers = new Float32Array();
    const mine = this.#of("image_curves", concept).filter((row) => value(found, "output", row) === output);
    return mine.map((row) => {
      // The first line of a concept and output holds the values that all its images share.
      const own = found.list("value", row);
      if (own.length) at = own;
      return {
        input: value(found, "input_id", row),
        value: at,
        probability: Array.from(found.list("probability", row), (step) => step / STEPS),
      };
    });
  }

  examples(concept: number): Example[] {
    return this.#of("examples", concept).map((row) => example(table(this.tables, "examples"), row));
  }

  histograms(concept: number): Histogram[] {
    const found = table(this.tables, "histograms");
    return this.#of("histograms", concept).map((row) => ({
      group: value(found, "group", row),
      counts: found.list("counts", row),
      max: value(found, "max", row),
    }));
  }

  #of(name: string, concept: number): number[] {
    let known = this.#rows.get(name);
    if (!known) {
      known = new Map();
      for (const [row, owner] of [...table(this.tables, name).numbers("concept")].entries()) {
        const mine = known.get(owner);
        if (mine) mine.push(row);
        else known.set(owner, [row]);
      }
      this.#rows.set(name, known);
    }
    return known.get(concept) ?? [];
  }
}

/** What is known of an input: its key, its text, its picture. */
export interface Shown {
  key: string;
  text: string;
  url: string | undefined;
}

/** The inputs that have been sent, with their pictures. */
export class Inputs {
  readonly #known = new Map<number, Shown>();
  readonly #thumbs: Thumbs[] = [];

  /** Add the table of a message, and its pictures where it has some. */
  add(inputs: Table, header: unknown = {}, bytes: unknown = undefined): void {
    const thumbs = new Thumbs(header, bytes);
    this.#thumbs.push(thumbs);
    const [ids, places] = [inputs.numbers("input_id"), inputs.numbers("thumb")];
    const [keys, texts] = [inputs.json("key") as string[], inputs.json("text") as string[]];
    for (let row = 0; row < inputs.rows; row += 1) {
      const id = ids[row] as number;
      const url = thumbs.url(places[row] ?? -1) ?? this.#known.get(id)?.url;
      this.#known.set(id, { key: keys[row] ?? "", text: texts[row] ?? "", url });
    }
  }

  get(id: number): Shown {
    return this.#known.get(id) ?? { key: `input ${id}`, text: "", url: undefined };
  }

  dispose(): void {
    for (const one of this.#thumbs) one.dispose();
  }
}

function rows(of: Table): number[] {
  return Array.from({ length: of.rows }, (_, row) => row);
}

function effects(of: Table, q: number): Effect[] {
  const isReliance = of.has("output");
  return rows(of).map((row) => {
    const masked = of.has("masked") && value(of, "masked", row) > 0;
    const effect = value(of, "effect", row);
    const own = value(of, "q_value", row);
    return {
      concept: value(of, "concept", row),
      side: value(of, isReliance ? "output" : "group", row),
      given: isReliance ? -1 : value(of, "given", row),
      effect,
      low: value(of, "ci_low", row),
      high: value(of, "ci_high", row),
      n: value(of, "n", row),
      n_rest: isReliance ? 0 : value(of, "n_rest", row),
      q: own,
      masked,
      flagged: !masked && own <= q && Number.isFinite(effect),
      table: of,
      row,
    };
  });
}

function errorLine(of: Table, row: number): ErrorLine {
  const interval = (name: string): Interval => ({
    value: value(of, name, row),
    low: value(of, `${name}_low`, row),
    high: value(of, `${name}_high`, row),
  });
  return {
    group: value(of, "group", row),
    level: value(of, "level", row),
    n: value(of, "n", row),
    base_rate: value(of, "base_rate", row),
    accuracy: interval("accuracy"),
    tpr: interval("tpr"),
    fpr: interval("fpr"),
    calibration: value(of, "calibration", row),
    ece: value(of, "ece", row),
    masked: value(of, "masked", row) > 0,
  };
}

function example(of: Table, row: number): Example {
  return { group: value(of, "group", row), input: value(of, "input_id", row), act: value(of, "act", row) };
}

/**
 * One line per concept in the order in which they are shown: flagged ones by the size of their effect, then, apart, the
 * others by their q-value, masked ones last. Effects are compared only among those that pass the test.
 */
export function ranked(lines: Effect[]): { flagged: Effect[]; others: Effect[] } {
  const flagged = lines.filter((one) => one.flagged).sort((a, b) => Math.abs(b.effect) - Math.abs(a.effect));
  const place = (one: Effect) => (one.masked ? 2 : Number.isNaN(one.q) ? 1.5 : one.q);
  const others = lines.filter((one) => !one.flagged).sort((a, b) => place(a) - place(b) || a.concept - b.concept);
  return { flagged, others };
}
