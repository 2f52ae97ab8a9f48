import { describe, expect, it } from "vitest";
import { ShownError } from "../src/core/errors";
import { block, type Table, Thumbs, unpack } from "../src/core/wire";
import { bytes, contract, unaligned } from "./fixture";

const values = contract.values as Record<string, unknown[]>;
const plain = bytes(contract.block);

/** The contract's header with one column that is not as it was. */
function changed(what: object) {
  return {
    version: 1,
    tables: { all: { rows: 3, columns: [{ name: "x", dtype: "u32", offset: 0, length: 3, ...what }] } },
  };
}

function column(table: Table, name: string): unknown[] {
  const expected = values[name] as unknown[];
  if (expected.some((one) => typeof one === "string" || one === null) && name !== "density") return table.json(name);
  if (name === "tokens") return table.json(name);
  if (Array.isArray(expected[0])) return expected.map((_, row) => [...table.list(name, row)]);
  return [...table.numbers(name)].map((one) => (Number.isNaN(one) ? null : one));
}

describe("tables that Python packed", () => {
  for (const [form, view] of [
    ["an unaligned DataView", unaligned(plain)],
    ["a Uint8Array", plain],
    ["an ArrayBuffer", plain.buffer],
  ] as const) {
    it(`come back equal from ${form}`, () => {
      const { all, none } = unpack(contract.header, view);
      for (const [name, expected] of Object.entries(values)) {
        const wanted = expected.map((one) => (typeof one === "boolean" ? Number(one) : one));
        expect(column(all as Table, name), name).toEqual(wanted);
      }
      expect(none?.rows).toBe(0);
      expect([...(none as Table).numbers("latent")]).toEqual([]);
    });
  }

  it("of another version are refused", () => {
    expect(() => unpack({ ...contract.header, version: 99 }, plain)).toThrow("version 99");
  });

  it("name a column that is missing or of another kind", () => {
    const { all } = unpack(contract.header, plain);
    expect(() => all?.numbers("nothing")).toThrow("all has no column nothing");
    expect(() => all?.numbers("name")).toThrow("holds text");
    expect(() => all?.list("latent", 0)).toThrow("holds no lists");
  });

  it.each([
    ["cut off", contract.header, plain.slice(0, 40), /column all\.\w+ runs from byte \d+ to \d+ of 40/],
    ["without a header", undefined, plain, /no header/],
    ["of a header that is none", { version: 1, tables: 3 }, plain, /no header/],
    ["without columns", { version: 1, tables: { all: { rows: 1 } } }, plain, /all has no columns/],
    ["of an unknown type", changed({ dtype: "f64" }), plain, /unknown type f64/],
    ["that begin nowhere", changed({ offset: -8 }), plain, /from byte -8/],
    ["that begin between two values", changed({ offset: 1, length: 1 }), plain, /from byte 1 to/],
    ["of a length that is none", changed({ length: "many" }), plain, /to NaN of/],
  ])("%s are refused before they are read", (_, header, block, said) => {
    let error: unknown;
    try {
      unpack(header, block);
    } catch (caught) {
      error = caught;
    }
    expect(error).toBeInstanceOf(ShownError);
    expect((error as ShownError).message).toMatch(said);
    expect((error as ShownError).fix).toContain("Run the cell");
  });

  it("need bytes", () => {
    expect(() => block({})).toThrow("no bytes");
  });
});

describe("pictures", () => {
  it("have an address each, none where there is no picture, and are revoked together", () => {
    const made: Blob[] = [];
    const revoked: string[] = [];
    URL.createObjectURL = (blob) => `blob:${made.push(blob as Blob)}`;
    URL.revokeObjectURL = (url) => void revoked.push(url);
    const thumbs = new Thumbs(contract.thumbs_header, unaligned(bytes(contract.thumbs)));
    expect([thumbs.url(0), thumbs.url(0), thumbs.url(1), thumbs.url(2), thumbs.url(3), thumbs.url(-1)]).toEqual([
      "blob:1", "blob:1", undefined, "blob:2", undefined, undefined,
    ]); // biome-ignore format: one line per thumb
    expect(made.map((blob) => blob.size)).toEqual([4, 5]);
    thumbs.dispose();
    expect(revoked).toEqual(["blob:1", "blob:2"]);
  });
});
