/** The tables of the attribution strip, with their columns named once. Names are Python's. */

import { type Numbers, type Table, Thumbs, unpack } from "../../core/wire";

export interface About {
  title: string;
  metric: string;
  method: string;
  site: string;
  model: string;
  note: string;
  value: number | null;
  error: number | null;
  bias: number | null;
  none: number | null;
  grid: [number, number] | null;
  prefix_tokens: number;
  /** Positions have no text. */
  numbered: boolean;
  inputs: number[];
  saved: number[];
  /** Latents behind each token that the saved view holds at most. */
  per_token: number;
  /** Rows of the ranking that there are; the table may hold fewer. */
  latents: number;
  /** Whether attributions are known by token. */
  by_token: boolean;
}

/** What one latent does, at a token or in the whole input. */
export interface Share {
  latent: number;
  name: string | undefined;
  attribution: number;
  activation: number;
}

export interface Token {
  token: number;
  text: string;
  /** Sum over latents; those that are not listed count. */
  total: number;
  /** What the reconstruction error does; NaN where it is not known. */
  error: number;
  /** Sum and number of the latents that are not listed. */
  rest: number;
  rest_count: number;
  shares: Share[];
}

export interface Input {
  input_id: number;
  tokens: Token[];
  picture: string | undefined;
}

/** One pre-activation by head and source; row by row. */
export interface Cells {
  latent: number;
  target: number;
  heads: number;
  sources: number;
  contribution: Numbers;
  /** 0 … 1. */
  attention: Float32Array;
}

export interface Pair {
  latent: number;
  target: number;
  /** Of the contributions; with `bias` it is `pre`. Both are NaN where they are not known. */
  sum: number;
  pre: number;
  bias: number;
  name: string | undefined;
}

export interface Point {
  latents: number;
  recovered: number;
  low: number;
  high: number;
}

const STEPS = 65_535; // of an attention weight

export function sharesOf(table: Table | undefined): Share[] {
  if (!table) return [];
  const names = table.json("name") as (string | null)[];
  const [latent, attribution, activation] = ["latent", "attribution", "activation"].map((one) => table.numbers(one));
  return Array.from({ length: table.rows }, (_, row) => ({
    latent: latent?.[row] ?? 0,
    name: names[row] ?? undefined,
    attribution: attribution?.[row] ?? 0,
    activation: activation?.[row] ?? 0,
  }));
}

/** The inputs of one message or of the saved view; `thumbs` has one picture per input, in the order of `ids`. */
export function inputsOf(tables: Record<string, Table>, ids: number[], thumbs: Thumbs): Map<number, Input> {
  const table = tables.tokens;
  if (!table || !tables.shares) throw new Error("The attribution has no table of tokens. Run the cell again.");
  const shares = sharesOf(tables.shares);
  const line = tables.shares.numbers("line");
  const texts = table.json("text") as string[];
  const of = (name: string, row: number) => table.numbers(name)[row] ?? Number.NaN;
  const found = new Map<number, Input>(
    ids.map((input_id, place) => [input_id, { input_id, tokens: [], picture: thumbs.url(place) }]),
  );
  let at = 0;
  for (let row = 0; row < table.rows; row += 1) {
    const own: Share[] = [];
    for (; at < shares.length && line[at] === row; at += 1) own.push(shares[at] as Share);
    found.get(of("input_id", row))?.tokens.push({
      token: of("token", row),
      text: texts[row] ?? "",
      total: of("total", row),
      error: of("error", row),
      rest: of("rest", row),
      rest_count: of("rest_count", row),
      shares: own,
    });
  }
  return found;
}

export function cellsOf(table: Table | undefined): Cells[] {
  if (!table) return [];
  const of = (name: string, row: number) => table.numbers(name)[row] ?? 0;
  return Array.from({ length: table.rows }, (_, row) => ({
    latent: of("latent", row),
    target: of("target", row),
    heads: of("heads", row),
    sources: of("sources", row),
    contribution: table.list("contribution", row),
    attention: Float32Array.from(table.list("attention", row), (step) => step / STEPS),
  }));
}

export function pairsOf(table: Table | undefined): Pair[] {
  if (!table) return [];
  const names = table.json("name") as (string | null)[];
  const of = (name: string, row: number) => table.numbers(name)[row] ?? 0;
  return Array.from({ length: table.rows }, (_, row) => ({
    latent: of("latent", row),
    target: of("target", row),
    sum: of("sum", row),
    pre: of("pre", row),
    bias: of("bias", row),
    name: names[row] ?? undefined,
  }));
}

/** The two curves, each by the number of latents. */
export function curvesOf(table: Table | undefined): { own: Point[]; random: Point[] } {
  const curves: { own: Point[]; random: Point[] } = { own: [], random: [] };
  for (let row = 0; row < (table?.rows ?? 0); row += 1) {
    const of = (name: string) => table?.numbers(name)[row] ?? Number.NaN;
    const point = { latents: of("latents"), recovered: of("recovered"), low: of("low"), high: of("high") };
    curves[of("random") ? "random" : "own"].push(point);
  }
  for (const curve of Object.values(curves)) curve.sort((a, b) => a.latents - b.latents);
  return curves;
}

export { Thumbs, unpack };
