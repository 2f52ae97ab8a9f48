import { beforeEach, describe, expect, it, vi } from "vitest";
import patches from "../../tests/fixtures/patches.json";
import text from "../../tests/fixtures/text.json";
import { sharesBelow } from "../src/panels/examples";
import { textsPanel } from "../src/panels/texts";
import { closeEach, open } from "./feature-view";
import { bytes, unaligned } from "./fixture";

closeEach();

describe("the card of a text", () => {
  it("shows the strongest contexts and, below them, a sample by strength with its quantiles", () => {
    const { el, press } = open(text);
    expect([...el.querySelectorAll("h4")].map((one) => one.textContent)).toEqual(
      expect.arrayContaining(["Strongest examples", "Sampled by strength"]),
    );
    const labels = [...el.querySelectorAll(".nbs-interval > :first-child")].map((one) => one.textContent);
    expect(labels.length).toBe(10);
    expect(labels[0]).toMatch(/0\.9 – 1 of max.*quantile [\d.]+ – 1\.00/);
    expect(el.querySelectorAll(".nbs-interval .nbs-passage").length).toBe(10);
    press("t");
    expect(el.querySelector('.nbs-segments [aria-pressed="true"]')?.textContent).toBe("All strengths");
  });

  it("says which share of the active rows lies below a value", () => {
    const card = { histogram: Uint32Array.from([6, 2, 0, 2]), histogram_max: 4 } as never;
    expect([0, 0.5, 1, 2, 3, 4, 9].map((value) => sharesBelow(card)(value))).toEqual([0, 0.3, 0.6, 0.8, 0.8, 1, 1]);
    expect(sharesBelow({ histogram: new Uint32Array(4), histogram_max: 0 } as never)(1)).toBeUndefined();
  });

  it("lists promoted and suppressed tokens of both sides, and nothing for a card without", () => {
    const { el } = open(text);
    const lists = [...el.querySelectorAll("[role=list]")];
    expect(lists.map((one) => one.getAttribute("aria-label")?.split(",")[0])).toEqual([
      "Writes for: promoted",
      "Writes against: suppressed",
      "Reads: excites it",
      "Reads against: inhibits it",
    ]);
    expect(lists.map((one) => one.children.length)).toEqual([10, 10, 10, 10]);
    expect(lists[1]?.firstElementChild?.textContent).toMatch(/−[\d.]+$/);
    expect(open(patches).el.querySelector("[role=list]")).toBeNull();
  });

  it("says the activation, the token's number and what is known of the next token", () => {
    const say: string[] = [];
    const example = {
      interval: -1,
      rank: 0,
      act: 2,
      token: 1,
      at: 1,
      key: "doc",
      thumb: undefined,
      width: 0,
      height: 0,
      map: Float32Array.of(1.2345, 2),
      map_at: Uint32Array.of(0, 1),
      context: { start: 8, number: 0, before: true, after: false, tokens: ["a", "b", "c"] },
    };
    const line = (effect?: Float32Array) => {
      const root = document.createElement("div");
      const promoted = [{ side: "write", suppressed: true, token: "b", token_id: 4, logit: -1, p: 0.01 }];
      const panel = { about: { positions: 64 }, state: { get: () => "card", on: () => () => {} } };
      const one = { ...example, ...(effect ? { effect } : {}) };
      textsPanel(root, panel as never, { scale: 2, promoted } as never, [one], (parts) => say.push(parts.join(" · ")));
      document.body.append(root);
      return root.querySelector<HTMLElement>(".nbs-tokens") as HTMLElement;
    };
    const first = line();
    first.focus();
    first.dispatchEvent(new KeyboardEvent("keydown", { key: "Home" }));
    expect(say).toEqual([
      "activation 2.00 · “b” · token 9 · doc",
      "activation 1.23 · “a” · token 8 · next token “b” is suppressed · doc",
    ]);
    line(Float32Array.of(0.5, -0.25, Number.NaN)).focus();
    expect(say.at(-1)).toBe("activation 2.00 · “b” · token 9 · log p of the next token “c” −0.250 · doc");
  });
});

describe("a text of the user", () => {
  beforeEach(() => void vi.useFakeTimers());

  function live() {
    const view = open(text, { kernel: true });
    view.model.answer({ id: view.model.sent[0]?.id, ok: true });
    view.model.sent.length = 0;
    const field = view.find(".nbs-own") as HTMLTextAreaElement;
    const asked = () => view.model.sent.filter(({ kind }) => kind === "read");
    const read = (value: string) => {
      field.value = value;
      field.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", ctrlKey: true, bubbles: true }));
    };
    const reply = () => {
      const buffers = text.read.buffers.map((one) => unaligned(bytes(one)));
      view.model.answer({ ...(text.read.content as object), id: asked().at(-1)?.id, ok: true }, buffers);
      return vi.advanceTimersByTimeAsync(0);
    };
    return { ...view, field, asked, read, reply, own: () => field.closest("section") as HTMLElement };
  }

  it("is read by the kernel, shown as text, and names the latents to go to", async () => {
    const { own, asked, read, reply, model } = live();
    model.set("latent", 1);
    read("any");
    expect(asked()).toMatchObject([{ text: "any", latent: 1 }]);
    await reply();
    expect(own().querySelectorAll(".nbs-token").length).toBe(5);
    expect(own().querySelector(".nbs-strongest")?.getAttribute("aria-label")).toBe("a, 1.10");
    expect(own().textContent).toContain("<img src=x onerror=");
    expect(own().querySelector("img")).toBeNull();
    const [first] = own().querySelectorAll<HTMLElement>("[data-latent]");
    first?.click();
    expect(model.state.latent).toBe(4);
    expect(asked().at(-1)).toMatchObject({ text: "any", latent: 4 });
  });

  it("is refused when it is empty or too long, without asking", async () => {
    const { own, asked, read } = live();
    read("  ");
    await vi.advanceTimersByTimeAsync(0);
    expect(own().querySelector(".nbs-error")?.textContent).toContain("The text is empty");
    read("x".repeat(10_000_000));
    await vi.advanceTimersByTimeAsync(0);
    expect(own().querySelector(".nbs-error")?.textContent).toContain("10,000,000 characters; at most 100,000");
    expect(asked()).toEqual([]);
  });

  it("shows the kernel's reason as an error card, and only the last answer", async () => {
    const { own, asked, read, reply, model } = live();
    read("one");
    read("two");
    model.answer({ id: asked()[0]?.id, ok: false, error: { cause: "too <b>long</b>" } });
    await vi.advanceTimersByTimeAsync(0);
    expect(own().querySelector(".nbs-error")).toBeNull();
    model.answer({ id: asked()[1]?.id, ok: false, error: { cause: "too <b>long</b>" } });
    await vi.advanceTimersByTimeAsync(0);
    expect(own().querySelector(".nbs-error")?.textContent).toContain("too <b>long</b>");
    read("three");
    await reply();
    expect(own().querySelector(".nbs-error")).toBeNull();
  });

  it("says what it needs where no kernel answers or nothing reads", () => {
    const alone = open(text).find(".nbs-own")?.closest("details");
    expect(alone?.querySelector<HTMLElement>("p:not([hidden])")?.textContent).toContain("needs a running kernel");
    const unread = open(text, { about: { reads: false } })
      .find(".nbs-own")
      ?.closest("details");
    expect(unread?.textContent).toContain("read=ns.reader(lm, dictionary)");
    expect(open(patches).find(".nbs-own")?.closest("section") ?? null).toBeNull();
  });
});
