import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import fixture from "../../tests/fixtures/concepts.json";
import concept from "../src/concept";
import { unpack } from "../src/core/wire";
import { found } from "../src/panels/concept/list";
import { Concepts } from "../src/panels/concept/tables";
import { FakeModel } from "./fake";
import { bytes, unaligned } from "./fixture";

const opened: (() => void)[] = [];

function open({ kernel = false, about = {} }: { kernel?: boolean; about?: object } = {}) {
  const state: Record<string, unknown> = { ...fixture.state };
  state.about = { ...fixture.state.about, ...about };
  for (const name of fixture.binary) state[name] = unaligned(bytes(state[name] as string));
  const model = new FakeModel(state);
  const el = document.createElement("div");
  document.body.append(el);
  const close = concept.render({ model, el, host: { kernel } } as never);
  opened.push(close);
  const find = <E extends HTMLElement>(selector: string) => el.querySelector<E>(selector);
  const all = (selector: string) => [...el.querySelectorAll<HTMLElement>(selector)];
  const drag = async (value: number, slider = find<HTMLInputElement>(".nbs-slider input")) => {
    if (!slider) throw new Error("no slider");
    slider.value = String(value);
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    await vi.advanceTimersByTimeAsync(200);
  };
  const answer = async (kind: string, made: { content: object; buffers: string[] }) => {
    const asked = model.sent.filter((one) => one.kind === kind).at(-1);
    model.answer(
      { ...made.content, id: asked?.id, ok: true },
      made.buffers.map((one) => unaligned(bytes(one))),
    );
    await vi.advanceTimersByTimeAsync(1);
    return asked;
  };
  return { model, el, find, all, drag, answer };
}

beforeEach(() => {
  vi.useFakeTimers();
  URL.createObjectURL = () => "blob:thumb";
  URL.revokeObjectURL = () => {};
});
afterEach(() => {
  for (const close of opened.splice(0)) close();
  document.body.replaceChildren();
  vi.useRealTimers();
});

describe("the list of concepts", () => {
  const { concepts: table } = unpack(fixture.state.concepts_header, bytes(fixture.state.concepts));
  const concepts = new Concepts(table as never);
  const latents = (text: string, all = false) => [...found(concepts, text, all)].map((row) => concepts.latent[row]);

  it("finds names before parts of names, then attributes and runner-ups", () => {
    expect(latents("hat")).toEqual([1, 2]);
    expect(latents("bea")).toEqual([]);
    expect(latents("bea", true)).toEqual([3]);
    expect(latents("#5")).toEqual([5]);
    expect(latents("eyeglasses")).toEqual([0]);
    expect(latents("sunglasses").length).toBe(5);
    expect(latents("no such thing")).toEqual([]);
  });
});

describe("a saved view", () => {
  it("shows the concept, how sure its name is, and hostile strings as text", async () => {
    const { el, find, all } = open();
    await vi.advanceTimersByTimeAsync(1);
    expect(find("h3")?.textContent).toContain("<img src=x");
    expect(find(".nbs-facts")?.textContent).toContain("0.970");
    expect(find(".nbs-facts")?.textContent).toContain("agrees with the name");
    expect(all(".nbs-row").length).toBe(5);
    expect(el.querySelectorAll("script, [onerror], a, iframe").length).toBe(0);
    expect(find(".nbs-status")?.textContent).toBe("saved view");
  });

  it("answers an edit from the grid, and says what is new and what is lost", async () => {
    const { all, find, drag } = open();
    await vi.advanceTimersByTimeAsync(1);
    expect(all(".nbs-result .nbs-strip").length).toBe(1);
    const slider = find<HTMLInputElement>(".nbs-slider input");
    expect(slider?.max).toBe("4");
    await drag(4); // latent 0 to 4: four rows further
    const [before, after] = all(".nbs-result .nbs-strip");
    expect(after?.querySelectorAll(".nbs-new").length).toBe(4);
    expect(before?.querySelectorAll(".nbs-lost").length).toBe(4);
    expect(after?.querySelector(".nbs-tile")?.getAttribute("aria-label")).toContain("000008.jpg");
    expect(find(".nbs-bars")?.textContent).toContain("+0.200");
  });

  it("says that a concept cannot be moved here, rather than nothing", () => {
    const { model, find } = open();
    model.set("latent", 3);
    expect(find<HTMLInputElement>(".nbs-slider input")?.disabled).toBe(true);
    expect(find(".nbs-slider")?.textContent).toContain("not in the saved view");
  });

  it("moves among concepts with the keys and tells the kernel side", async () => {
    const { model, find } = open();
    find(".nbs-list")?.dispatchEvent(new KeyboardEvent("keydown", { key: "]", bubbles: true }));
    await vi.advanceTimersByTimeAsync(1);
    expect(model.get("latent")).toBe(1);
    model.set("latent", 5);
    expect(find("h3")?.textContent).toContain("lipstick");
  });

  it("without an editor names the way to one", () => {
    const { find } = open({ about: { edits: false } });
    expect(find(".nbs-scroll")?.textContent).toContain("ConceptEditor");
  });
});

describe("a live view", () => {
  it("asks the kernel for mixtures, once per pause, and draws its answer", async () => {
    const { model, find, drag, answer, all } = open({ kernel: true });
    model.answer({ id: model.sent[0]?.id, ok: true });
    await vi.advanceTimersByTimeAsync(1);
    const slider = find<HTMLInputElement>(".nbs-slider input");
    expect(slider?.max).toBe("40");
    for (const value of [10, 11, 12]) {
      if (slider) slider.value = String(value);
      slider?.dispatchEvent(new Event("input", { bubbles: true }));
    }
    await drag(13);
    const edits = model.sent.filter(({ kind }) => kind === "edit");
    expect(edits.length).toBe(1);
    expect(edits[0]?.row).toBe(3);
    expect(edits[0]?.set).toEqual([[0, 1.3]]);
    await answer("edit", fixture.asked);
    expect(all(".nbs-result .nbs-strip").length).toBe(2);
  });

  it("shows the kernel's error and stays usable", async () => {
    const { model, find, drag } = open({ kernel: true });
    model.answer({ id: model.sent[0]?.id, ok: true });
    await vi.advanceTimersByTimeAsync(1);
    await drag(19);
    const asked = model.sent.at(-1);
    model.answer({ id: asked?.id, ok: false, error: { cause: "out of rows", fix: "", details: "" } });
    await vi.advanceTimersByTimeAsync(1);
    expect(find(".nbs-error")?.textContent).toContain("out of rows");
    expect(find(".nbs-slider input")).not.toBeNull();
  });

  it("takes another input from the kernel", async () => {
    const { model, find, answer, all } = open({ kernel: true });
    model.answer({ id: model.sent[0]?.id, ok: true });
    await vi.advanceTimersByTimeAsync(1);
    const before = all("[role=radio]").length;
    find(".nbs-choose button")?.click();
    await answer("another", fixture.another);
    expect(all("[role=radio]").length).toBe(before + 1);
    expect(all("[aria-checked=true]").length).toBe(1);
  });

  it("leaves nothing behind", () => {
    const { model } = open({ kernel: true });
    for (const close of opened.splice(0)) close();
    expect(model.listening).toBe(0);
  });
});
