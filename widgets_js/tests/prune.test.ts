import { expect, it } from "vitest";
// @ts-expect-error: the build's own script, without types
import { prune, unnamed } from "../prune.mjs";

it("leaves out rules for classes that the script does not name", () => {
  const css = ".nbs-dash{color:red;.nbs-a{b:c}.nbs-b>i{b:c}:is(.nbs-a,.nbs-b,td){b:c}@media print{.nbs-b{x:y}}}";
  expect(prune(css, '"nbs-dash nbs-a"')).toBe(".nbs-dash{color:red;.nbs-a{b:c}:is(.nbs-a,td){b:c}}");
});

it("keeps what a name that is put together may mean, and what `:not` speaks of", () => {
  const css = '.nbs-col-max{a:b}.nbs-x:not(.nbs-y){content:"}.nbs-z{"}';
  expect(prune(css, "nbs-col- nbs-x")).toBe(css);
});

it("keeps plain elements, attributes and keyframes", () => {
  const css = "@keyframes nbs-p{to{opacity:1}}td{a:b}[hidden]{a:b!important}";
  expect(prune(css, "")).toBe(css);
});

it("finds the classes of a sheet that a script puts together", () => {
  expect(unnamed(".nbs-a{b:c}.nbs-new{b:c}td{b:c}", "'nbs-a' + 'nbs-' + mark")).toEqual([".nbs-new"]);
});
