import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { AnyModel } from "../src/core/life";
import { linkedModel } from "../src/core/link";
import { FakeModel, life } from "./fake";

const lives: ReturnType<typeof life>[] = [];

beforeEach(() => void vi.useFakeTimers());
afterEach(() => {
  for (const one of lives.splice(0)) one.close();
  vi.useRealTimers();
});

/** A view, its model, and what it was told. */
function opened(state: Record<string, unknown> = {}, group = "g", sites: Record<string, number | null> = { mlp: 64 }) {
  const model = new FakeModel({ latent: 0, linked: group ? { group, sites } : {}, ...state });
  const own = life();
  lives.push(own);
  const view = linkedModel(model, own);
  const seen: unknown[] = [];
  view.on("change:latent", () => void seen.push(view.get("latent")));
  return { model, view, seen, life: own };
}

function choose(view: AnyModel, latent: number): void {
  view.set("latent", latent);
  view.save_changes();
}

describe("a latent chosen in one view", () => {
  it("is chosen in the others of its link, which say nothing to the kernel", () => {
    const [a, b, other, alone] = [opened(), opened(), opened({}, "h"), opened({}, "")];
    choose(a.view, 7);
    expect(a.model.saves).toBe(1);
    expect([b.view.get("latent"), b.seen]).toEqual([7, [7]]);
    expect([b.model.state.latent, b.model.saves]).toEqual([0, 0]);
    expect([other.seen, alone.seen]).toEqual([[], []]);
  });

  it("stays away from a view that does not show it", () => {
    const [a, short, choosy] = [opened(), opened({}, "g", { mlp: 5 }), opened()];
    choosy.life.accepts = (latent) => latent % 2 === 0;
    choose(a.view, 7);
    expect([short.view.get("latent"), choosy.view.get("latent")]).toEqual([0, 0]);
    choose(a.view, 4);
    expect([short.view.get("latent"), choosy.view.get("latent")]).toEqual([4, 4]);
  });

  it("comes with its site to views of several sites, and only to others of that site", () => {
    const flow = opened({ site: "mlp" }, "g", { mlp: 64, attn: 64 });
    const [mlp, attn] = [opened(), opened({}, "g", { attn: 64 })];
    choose(attn.view, 9);
    expect([flow.view.get("site"), flow.view.get("latent"), mlp.seen]).toEqual(["attn", 9, []]);
    choose(flow.view, 3);
    expect([attn.view.get("latent"), mlp.seen]).toEqual([3, []]);
    // What was shown became the model's own: the kernel is told the site too.
    expect(flow.model.state).toMatchObject({ site: "attn", latent: 3 });
  });

  it("can be left for what the model holds already", () => {
    const [a, b] = [opened(), opened({ latent: 2 })];
    choose(a.view, 7);
    const before = b.model.saves;
    choose(b.view, 2);
    expect([b.view.get("latent"), a.view.get("latent"), b.model.saves]).toEqual([2, 2, before + 1]);
  });
});

describe("words of the kernel", () => {
  it("that repeat what is shown change nothing", () => {
    const [a, b] = [opened(), opened()];
    choose(a.view, 7);
    b.model.set("latent", 7);
    expect(b.seen).toEqual([7]);
    b.model.set("latent", 8);
    expect(b.seen).toEqual([7, 8]);
  });

  it("that lag behind fast steps do not throw the view back", () => {
    const [a, b] = [opened(), opened()];
    for (let latent = 1; latent < 6; latent += 1) {
      choose(a.view, latent);
      if (latent > 2) b.model.set("latent", latent - 2);
    }
    for (const late of [4, 5]) b.model.set("latent", late);
    vi.advanceTimersByTime(2_000);
    expect(b.seen).toEqual([1, 2, 3, 4, 5]);
    expect(a.model.saves).toBe(5);
  });

  it("count in the end where they say something else", () => {
    const [a, b] = [opened(), opened()];
    choose(a.view, 7);
    b.model.set("latent", 3);
    expect(b.view.get("latent")).toBe(7);
    vi.advanceTimersByTime(2_000);
    expect(b.view.get("latent")).toBe(3);
  });

  it("are not passed on to other views", () => {
    const [a, b] = [opened(), opened()];
    a.model.set("latent", 7);
    expect([a.seen, b.seen]).toEqual([[7], []]);
  });
});

it("a closed view leaves no listener, on the model or on the document", () => {
  const added = vi.spyOn(document, "addEventListener");
  const removed = vi.spyOn(document, "removeEventListener");
  const { model, seen, life: own } = opened();
  const other = opened();
  own.close();
  expect(model.listening).toBe(0);
  choose(other.view, 5);
  expect(seen).toEqual([]);
  other.life.close();
  expect(removed.mock.calls.length).toBe(added.mock.calls.length);
});
