import { expect, it } from "vitest";
import type { AnyModel } from "../src/core/life";
import { checkSides } from "../src/core/version";
import { WIRE_VERSION } from "../src/core/wire";
import { FakeModel } from "./fake";

it.each([
  [WIRE_VERSION - 1, /kernel runs nb_sae 1\.2\.3, which is older/, /restart the kernel/],
  [WIRE_VERSION + 1, /script is older than nb_sae 1\.2\.3/, /reload this browser tab/],
])("format %i: the older side is named, and what to do", (wire, cause, fix) => {
  const check = () => checkSides(new FakeModel({ kernel_side: { wire, nb_sae: "1.2.3" } }));
  expect(check).toThrow(cause);
  expect(check).toThrow(expect.objectContaining({ fix: expect.stringMatching(fix) }));
});

it("the same format, or one that is not said, is let through", () => {
  checkSides(new FakeModel({ kernel_side: { wire: WIRE_VERSION, nb_sae: "9" } }));
  checkSides(new FakeModel());
});

it("a front end that lacks what is needed is said to be too old", () => {
  const { get, set, save_changes } = new FakeModel();
  const old = { get, set, save_changes } as unknown as AnyModel;
  expect(() => checkSides(old)).toThrow(/too old: its models have no send,on,off/);
});
