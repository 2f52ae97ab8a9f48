import { describe, expect, it } from "vitest";
import { roving, step } from "../src/core/a11y";
import { VirtualList } from "../src/core/list";

function list(length: number, chosen = 0) {
  const choices: number[] = [];
  const made = new VirtualList({
    label: "Latents",
    rowHeight: 30,
    draw: (row, index) => row.append(`row ${index}`),
    choose: (index) => choices.push(index),
  });
  document.body.append(made.element);
  made.reset(length, chosen);
  const press = (key: string) => made.element.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  return { made, choices, press };
}

describe("a list of any length", () => {
  it("holds only the visible rows", () => {
    const { made } = list(1_000_000);
    expect(made.element.querySelectorAll(".nbs-row").length).toBeLessThan(40);
    expect(made.element.querySelector(".nbs-row")?.getAttribute("aria-setsize")).toBe("1000000");
  });

  it("is one Tab stop with arrows, Home, End and pages", () => {
    const { made, choices, press } = list(100);
    expect(made.element.querySelectorAll("[tabindex]").length).toBe(0);
    for (const key of ["ArrowDown", "ArrowDown", "ArrowUp", "End", "ArrowDown", "Home", "PageDown"]) press(key);
    expect(choices).toEqual([1, 2, 1, 99, 99, 0, 12]);
    const active = made.element.getAttribute("aria-activedescendant") ?? "";
    expect(document.getElementById(active)?.getAttribute("aria-selected")).toBe("true");
  });

  it("leaves other keys to the host", () => {
    const { made } = list(10);
    const event = new KeyboardEvent("keydown", { key: "b", bubbles: true, cancelable: true });
    made.element.dispatchEvent(event);
    expect(event.defaultPrevented).toBe(false);
  });

  it("is chosen from with the pointer", () => {
    const { made, choices } = list(10);
    made.element.querySelectorAll<HTMLElement>(".nbs-row")[3]?.click();
    expect(choices).toEqual([3]);
  });

  it("may be empty, and may hold no chosen row", () => {
    const { made, press, choices } = list(0, -1);
    press("ArrowDown");
    expect(choices).toEqual([]);
    made.reset(5, -1);
    press("ArrowDown");
    expect(choices).toEqual([0]);
  });
});

describe("moving among items", () => {
  it("jumps by lines and stops at the ends", () => {
    expect([step("ArrowDown", 1, 10, 4), step("ArrowUp", 1, 10, 4), step("End", 1, 10), step("x", 1, 10)]).toEqual([
      5,
      0,
      9,
      undefined,
    ]);
  });

  it("keeps one Tab stop", () => {
    const root = document.createElement("div");
    for (let i = 0; i < 3; i += 1) root.append(Object.assign(document.createElement("div"), { className: "item" }));
    document.body.append(root);
    const stop = roving(root, ".item");
    const items = [...root.children] as HTMLElement[];
    items[0]?.focus();
    items[0]?.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
    expect(items.map((item) => item.tabIndex)).toEqual([-1, 0, -1]);
    expect(document.activeElement).toBe(items[1]);
    stop();
  });
});
