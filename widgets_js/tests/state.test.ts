import { expect, it, vi } from "vitest";
import { State } from "../src/core/state";

it("a part that cannot be drawn is told of, and the others are drawn", () => {
  const failed = vi.fn();
  const state = new State({ latent: 0 }, failed);
  const seen: number[] = [];
  state.on(["latent"], () => {
    throw new Error(`damaged at ${state.get("latent")}`);
  });
  state.on(["latent"], () => void seen.push(state.get("latent")));
  state.set("latent", 1);
  expect(seen).toEqual([0, 1]);
  expect(failed.mock.calls.map(([error]) => String(error))).toEqual(["Error: damaged at 0", "Error: damaged at 1"]);
});

it("without anybody to tell, the error is the page's", () => {
  const state = new State({ latent: 0 });
  expect(() =>
    state.on(["latent"], () => {
      throw new Error("damaged");
    }),
  ).toThrow("damaged");
});
