/** The table of the atlas: one row per point, columns of bytes, names. Trait and column names are Python's. */

import { cividis, type Rgb } from "../../core/colour";
import { count, percent, sig3, visible } from "../../core/format";
import type { Draw, PointTable } from "../../core/gl";
import type { Table } from "../../core/wire";

export interface Column {
  key: string;
  label: string;
  kind: "linear" | "log" | "category";
  low: number;
  high: number;
  categories: string[];
  /** Whether its bytes are in the saved view. */
  saved: boolean;
}

export interface About {
  title: string;
  site: string;
  rows: number;
  d_sae: number;
  grid: [number, number] | null;
  /** Names of x and y where they are values; none for a map. */
  axes: string[];
  layout: { method: string; kept?: number; null?: number; k?: number };
  /** Latents that are not drawn, because there are too many. */
  left_out: number;
  columns: Column[];
  names: { all: number; saved: number };
  draw: Draw;
  /** Cards inside the saved view. */
  cards: number;
}

/** Eight colours that stay apart without red and green (Okabe & Ito 2008), at 3 : 1 on a light and on a dark ground. */
const GROUPS = {
  light: ["#0072b2", "#d55e00", "#008262", "#b05a8c", "#966e00", "#3c82b4", "#5a5a5a", "#000000"],
  dark: ["#56b4e9", "#e69f00", "#00b386", "#cc79a7", "#f0e442", "#4d9de0", "#b8b8b8", "#ffffff"],
};
const MISSING = { light: [190, 194, 200], dark: [74, 79, 88] } as const;
/** Ends of cividis: what is strong stands out from the ground, what is weak keeps 3 : 1 to it. */
const ENDS = { light: [0.62, 0], dark: [0.38, 1] } as const;
/** How much of its colour a faded point keeps. */
const FADED = 0.22;

export type Ground = keyof typeof ENDS;

export class Atlas implements PointTable {
  readonly length: number;
  readonly x: Uint16Array;
  readonly y: Uint16Array;
  /** Number of the latent of each point, ascending. */
  readonly latents: ArrayLike<number>;
  labels: Record<string, string> = {};
  readonly #codes = new Map<string, Uint8Array>();
  readonly #names = new Map<number, string>();
  /** By latent: the place after that of its point; 0 where it has none. */
  readonly #after: Uint32Array;

  constructor(
    readonly about: About,
    { points, names }: Record<string, Table>,
  ) {
    if (!points) throw new Error("The state holds no table of points. Run the cell again.");
    this.length = points.rows;
    this.x = points.numbers("x") as Uint16Array;
    this.y = points.numbers("y") as Uint16Array;
    this.#after = new Uint32Array(about.d_sae);
    const skipped = points.has("skipped") ? points.numbers("skipped") : [];
    let latent = -1;
    this.latents = Uint32Array.from(this.x, (_, row) => {
      latent += 1 + (skipped[row] ?? 0);
      this.#after[latent] = row + 1;
      return latent;
    });
    for (const { key, saved } of about.columns) if (saved) this.#codes.set(key, points.numbers(key) as Uint8Array);
    const texts = names?.json("name") as string[] | undefined;
    for (const [row, text] of (texts ?? []).entries()) this.#names.set(names?.numbers("latent")[row] ?? -1, text);
  }

  /** The point of a latent; undefined where it has none. */
  at(latent: number): number | undefined {
    const after = this.#after[latent];
    return after ? after - 1 : undefined;
  }

  /** The user's label, else the name that was found. */
  name(latent: number): string | undefined {
    return this.labels[latent] || this.#names.get(latent);
  }

  keep(latent: number, name: string): void {
    if (name) this.#names.set(latent, name);
  }

  /** Latents that a text names, by number or by a part of their name. */
  find(text: string): number[] {
    const wanted = text.trim().toLowerCase().replace(/^#/, "");
    return Array.from(this.latents).filter(
      (latent) => String(latent) === wanted || this.name(latent)?.toLowerCase().includes(wanted),
    );
  }

  column(key: string): Column {
    const found = this.about.columns.find((one) => one.key === key) ?? this.about.columns[0];
    if (!found) throw new Error("The map has no column. Run the cell again.");
    return found;
  }

  /** The bytes of a column; undefined until the kernel has given them. */
  codes(key: string): Uint8Array | undefined {
    return this.#codes.get(key);
  }

  setCodes(key: string, codes: Uint8Array): void {
    this.#codes.set(key, codes);
  }

  /** A point's value, as exact as its byte; NaN where it is missing. */
  value({ key, kind, low, high, categories }: Column, at: number): number | string {
    const code = this.#codes.get(key)?.[at] ?? 0;
    if (!code) return Number.NaN;
    if (kind === "category") return categories[code - 1] ?? Number.NaN;
    const share = (code - 1) / 254;
    return kind === "log" ? low * (high / low) ** share : low + (high - low) * share;
  }

  /** The same in words: "≈ 3.2 %", "2". */
  said(column: Column, at: number): string {
    const value = this.value(column, at);
    if (typeof value === "string") return value;
    if (Number.isNaN(value)) return column.key === "density" ? "never active" : "–";
    return `≈ ${column.key === "density" ? percent(value) : sig3(value)}`;
  }

  /** Name and number of a latent. */
  title(latent: number): string {
    const name = this.name(latent);
    return name ? `${visible(name)} (${latent})` : `Latent ${latent}`;
  }

  /** What is known of a point, in the order of the columns. */
  facts(at: number): string[] {
    return this.about.columns
      .filter(({ key }) => this.#codes.has(key))
      .map((column) => `${column.label} ${this.said(column, at)}`);
  }

  /** One sentence on the map, for those who do not see it. */
  described(key: string): string {
    const { axes, layout } = this.about;
    const by = axes.length ? `${axes[0]} against ${axes[1]}` : `laid out by ${layout.method}`;
    return `Map of ${count(this.length)} latents ${by}, coloured by ${this.column(key).label}`;
  }
}

/** The colours of a column, 0 being what is missing. */
export function colours({ key, kind, categories }: Column, ground: Ground): Rgb[] {
  const [low, high] = ENDS[ground];
  const groups = kind === "category" && key !== "level" && categories.length <= GROUPS[ground].length;
  const steps = kind === "category" ? Math.max(1, categories.length - 1) : 254;
  return Array.from({ length: 256 }, (_, code) => {
    if (!code) return MISSING[ground];
    const own = GROUPS[ground][code - 1];
    if (groups && own) return [1, 3, 5].map((at) => Number.parseInt(own.slice(at, at + 2), 16)) as unknown as Rgb;
    return cividis(low + (high - low) * Math.min(1, (code - 1) / steps));
  });
}

/** As the point layer takes them: 256 opaque colours, then the same mixed into the ground. */
export function palette(all: Rgb[], ground: Rgb): Uint8Array {
  const bytes = new Uint8Array(2048);
  for (const [code, colour] of all.entries()) {
    const faded = colour.map((part, channel) => part * FADED + (ground[channel] ?? 0) * (1 - FADED));
    bytes.set([...colour, 255], code * 4);
    bytes.set([...faded, 255], 1024 + code * 4);
  }
  return bytes;
}
