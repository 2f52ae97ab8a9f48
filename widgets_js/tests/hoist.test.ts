import { expect, it } from "vitest";
// @ts-expect-error: a plain script of the build
import { hoist, NAMES } from "../hoist.mjs";

it("long names are written once, and the script does what it did", () => {
  const script = `const node = { setAttribute: (a, b) => a + b, append: (...x) => x.length };
const append = [1, 2], none = undefined, words = "setAttribute and (.5)";
globalThis.hoisted = [node.setAttribute("a", "b"), node?.setAttribute("c", "d"), none?.setAttribute("e", "f"),
  node.setAttribute(...append), node.setAttribute(1, 2), node.append(...append), words];`;
  const short = hoist(script);
  expect(short.match(/\.setAttribute/g)).toBeNull();
  expect(short.length).toBeLessThan(script.length);
  const page = globalThis as unknown as { hoisted: unknown };
  for (const one of [script, short]) {
    page.hoisted = undefined;
    // biome-ignore lint/security/noGlobalEval: the script is ours
    globalThis.eval(`{${one}}`);
    expect(page.hoisted).toEqual(["ab", "cd", undefined, 3, 3, 2, "setAttribute and (.5)"]);
  }
});

it("a name that is used too little to be worth it stays", () => {
  expect(hoist("a.setAttribute(1)")).toBe("a.setAttribute(1)");
});

it("there is a letter for every name", () => {
  const every = hoist(NAMES.map((name: string) => `x.${name};`.repeat(20)).join(""));
  expect(every).not.toContain("undefined");
  expect(new Set(every.match(/(?:const |,)(.)="/gu)).size).toBeGreaterThanOrEqual(NAMES.length - 1);
});
