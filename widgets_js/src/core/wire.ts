/**
 * Reads what `nb_sae/widgets/wire.py` writes: tables as one block of little-endian bytes with a JSON header.
 *
 * Every browser that runs these scripts is little-endian, so columns are typed arrays over the block, not copies.
 */

import { ShownError } from "./errors";

export interface Column {
  name: string;
  dtype: keyof typeof ARRAYS | "json";
  offset: number;
  /** Values, or bytes where dtype is "json". */
  length: number;
  /** Offset of one uint32 per row that says where its values stop; present for lists. */
  ends?: number;
}

export interface Header {
  version: number;
  tables: Record<string, { rows: number; columns: Column[] }>;
}

export type Numbers = Float32Array | Int32Array | Uint32Array | Uint16Array | Uint8Array | Int8Array;

const ARRAYS = {
  f32: Float32Array,
  i32: Int32Array,
  u32: Uint32Array,
  u16: Uint16Array,
  u8: Uint8Array,
  i8: Int8Array,
} as const;

export const WIRE_VERSION = 1;

/** What a table that cannot be read is said to be. */
function broken(what: string): ShownError {
  return new ShownError(`What this view was given is damaged: ${what}.`, "Run the cell of this dashboard again.");
}

/** Refuses a column that reaches beyond the block: a typed array over it would throw without saying which. */
function checkColumn(table: string, { name, dtype, offset, length, ends = 0 }: Column, rows: number, bytes: number) {
  const size = dtype === "json" ? 1 : ARRAYS[dtype]?.BYTES_PER_ELEMENT;
  if (!size) throw broken(`column ${table}.${name} has the unknown type ${dtype}`);
  const last = Math.max(offset + length * size, ends && ends + rows * 4);
  // Not a number fails both.
  if (!(offset >= 0 && last <= bytes) || offset % size) {
    throw broken(`column ${table}.${name} runs from byte ${offset} to ${last} of ${bytes}`);
  }
}

/** One table. Asking for a column that is not there is a fault of the two sides' versions, and says so. */
export class Table {
  readonly #cache = new Map<string, Numbers | unknown[]>();
  readonly #columns: Map<string, Column>;

  constructor(
    readonly name: string,
    readonly rows: number,
    columns: Column[],
    private readonly block: ArrayBuffer,
  ) {
    this.#columns = new Map(columns.map((column) => [column.name, column]));
  }

  has(name: string): boolean {
    return this.#columns.has(name);
  }

  /** Names of the columns, in their order. */
  get columns(): string[] {
    return [...this.#columns.keys()];
  }

  isText(name: string): boolean {
    return this.#column(name).dtype === "json";
  }

  isList(name: string): boolean {
    return this.#column(name).ends !== undefined;
  }

  /** A column of numbers; of a list column, the values of all rows. */
  numbers(name: string): Numbers {
    const known = this.#cache.get(name);
    if (known) return known as Numbers;
    const column = this.#column(name);
    if (column.dtype === "json") throw new Error(`Column ${this.name}.${name} holds text, not numbers.`);
    const values = new ARRAYS[column.dtype](this.block, column.offset, column.length);
    this.#cache.set(name, values);
    return values;
  }

  /** The values of one row of a list column. */
  list(name: string, row: number): Numbers {
    const { ends } = this.#column(name);
    if (ends === undefined) throw new Error(`Column ${this.name}.${name} holds no lists.`);
    const stops = new Uint32Array(this.block, ends, this.rows);
    return this.numbers(name).subarray(row > 0 ? stops[row - 1] : 0, stops[row]);
  }

  /** A column of strings, or of lists of strings. */
  json(name: string): unknown[] {
    const known = this.#cache.get(name);
    if (known) return known as unknown[];
    const { offset, length } = this.#column(name);
    const values = JSON.parse(new TextDecoder().decode(new Uint8Array(this.block, offset, length))) as unknown[];
    this.#cache.set(name, values);
    return values;
  }

  #column(name: string): Column {
    const column = this.#columns.get(name);
    if (!column) throw new Error(`The table ${this.name} has no column ${name}. Run the cell again and reload.`);
    return column;
  }
}

/** Bytes in whatever form the host gives them, as a block of its own: views need not be aligned. */
export function block(bytes: unknown): ArrayBuffer {
  if (bytes instanceof ArrayBuffer) return bytes;
  if (ArrayBuffer.isView(bytes)) {
    return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength) as ArrayBuffer;
  }
  throw new Error("This host gave no bytes for a table. Run the cell again.");
}

/** The header of no table, for what could not be read. */
export const NOTHING: Header = { version: WIRE_VERSION, tables: {} };

/** All tables of one message or trait. Throws a `ShownError` for what is cut off or was never a table. */
export function unpack(header: unknown, bytes: unknown): Record<string, Table> {
  const { version, tables } = (header ?? {}) as Header;
  if (typeof tables !== "object" || !tables) throw broken("its tables have no header");
  if (version !== WIRE_VERSION) {
    throw new Error(`The tables have version ${version}; this script reads ${WIRE_VERSION}. Reload the page.`);
  }
  const own = block(bytes);
  return Object.fromEntries(
    Object.entries(tables).map(([name, { rows, columns }]) => {
      if (!Array.isArray(columns)) throw broken(`the table ${name} has no columns`);
      for (const column of columns) checkColumn(name, column, rows, own.byteLength);
      return [name, new Table(name, rows, columns, own)];
    }),
  );
}

/** Encoded pictures behind each other, handed out as `blob:` addresses and revoked together. */
export class Thumbs {
  readonly #urls = new Map<number, string>();
  readonly #block: ArrayBuffer;
  readonly #ends: number[];

  constructor(header: unknown, bytes: unknown) {
    this.#ends = (header as { ends?: number[] })?.ends ?? [];
    this.#block = this.#ends.length ? block(bytes) : new ArrayBuffer(0);
  }

  /** Undefined where there is no picture, or where it was left out. */
  url(number: number): string | undefined {
    const known = this.#urls.get(number);
    if (known) return known;
    const end = this.#ends[number];
    const start = number > 0 ? this.#ends[number - 1] : 0;
    if (number < 0 || end === undefined || start === undefined || end <= start) return undefined;
    const url = URL.createObjectURL(new Blob([this.#block.slice(start, end)], { type: "image/webp" }));
    this.#urls.set(number, url);
    return url;
  }

  dispose(): void {
    for (const url of this.#urls.values()) URL.revokeObjectURL(url);
    this.#urls.clear();
  }
}
