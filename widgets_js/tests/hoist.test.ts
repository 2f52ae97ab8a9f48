import { transformSync } from "esbuild";
import { expect, it } from "vitest";
// @ts-expect-error: the build's own script, without types
import { hoist } from "../hoist.mjs";

/** Runs a script that puts its findings into `globalThis.hoisted`. */
function run(script: string): unknown {
  const page = globalThis as unknown as { hoisted: unknown };
  page.hoisted = undefined;
  // biome-ignore lint/security/noGlobalEval: the script is ours
  globalThis.eval(`{${script}}`);
  return page.hoisted;
}

const SCRIPT = transformSync(
  `const node = { setAttribute: (a, b) => a + b, "aria-label": 1, setAttributeToo: 2 };
  class Own { #setAttribute = 3; static setAttribute() { return new Own().#setAttribute; } }
  const setAttribute = [1, 2], none = undefined, { "aria-label": label, setAttributeToo } = node;
  const which = (x) => { switch (x) { case "a long text": return "a long text"; default: return typeof x === "string" } };
  globalThis.hoisted = [node.setAttribute("a long text", "b"), node?.setAttribute("c", "d"), none?.setAttribute("e"),
    node.setAttribute(...setAttribute), Own.setAttribute(), label, setAttributeToo, node["aria-label"], which("a long text"),
    which("b"), "aria-label" in node, (5).toString().setAttribute, 1..setAttribute, { "aria-label": 4, setAttribute }["aria-label"],
    \`aria-label \${"a long text"} setAttribute\`, "aria-label and .setAttribute stay text", /aria-label"/.test('aria-label"'),
    Object.keys({ setAttribute: 1, "aria-label": 2 }), [..."a long text"].length];`,
  { minify: true, target: "es2022" },
).code;

it("what is said often is written once, and the script does what it did", () => {
  const short = hoist(SCRIPT.repeat(1));
  expect(short).toContain('="setAttribute"');
  expect(short).toContain('="a long text"');
  expect(short.length).toBeLessThan(SCRIPT.length);
  expect(run(SCRIPT)).toHaveLength(19);
  expect(run(short)).toEqual(run(SCRIPT));
});

it("what is said too little to be worth it stays", () => {
  expect(hoist('a.setAttribute("x")')).toBe('a.setAttribute("x")');
});

it("a directive stays a directive, and names read in hot loops stay as they are", () => {
  const script = `"use strict";${"x.length;x.data;x.b".repeat(40)}`;
  expect(hoist(script)).toBe(script);
});
