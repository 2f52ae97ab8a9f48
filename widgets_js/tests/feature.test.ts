import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import patches from "../../tests/fixtures/patches.json";
import text from "../../tests/fixtures/text.json";
import { PING_MS } from "../src/core/rpc";
import feature from "../src/feature";
import { sharesBelow } from "../src/panels/examples";
import { textsPanel } from "../src/panels/texts";
import { FakeModel } from "./fake";
import { bytes, unaligned } from "./fixture";

const SAVED = [0, 1, 2, 3, 4];
const UNSAVED = 7;
const DEAD = 11;

const opened: (() => void)[] = [];

type Fixture = typeof patches | typeof text;

interface Setting {
  kernel?: boolean;
  host?: object;
  about?: object;
}

function open(fixture: Fixture, { kernel = false, host, about }: Setting = {}) {
  const binary = fixture.binary as string[];
  const state: Record<string, unknown> = { ...fixture.state, latent: 0 };
  state.about = { ...fixture.state.about, ...about };
  for (const name of binary) state[name] = unaligned(bytes(state[name] as string));
  const model = new FakeModel(state);
  const el = document.createElement("div");
  document.body.append(el);
  const close = feature.render({ model, el, host: host ?? { kernel } } as never);
  opened.push(close);
  const find = (selector: string) => el.querySelector<HTMLElement>(selector);
  const press = (key: string, target = find(".nbs-list")) =>
    target?.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  // A live view also completes the card it has drawn; what counts here is the latent that is not saved.
  const requests = () => model.sent.filter(({ kind, latent }) => kind === "card" && latent === UNSAVED);
  const answer = () => {
    const asked = requests()[0];
    const buffers = fixture.asked.buffers.map((one) => unaligned(bytes(one)));
    model.answer({ ...(fixture.asked.content as object), id: asked?.id, ok: true }, buffers);
  };
  return { model, el, close, find, press, requests, answer };
}

beforeEach(() => {
  URL.createObjectURL = () => "blob:thumb";
  URL.revokeObjectURL = () => {};
});
afterEach(() => {
  for (const close of opened.splice(0)) close();
  document.body.replaceChildren();
  vi.useRealTimers();
});

for (const [kind, fixture] of [
  ["pictures", patches],
  ["texts", text],
] as [string, Fixture][]) {
  describe(`a saved view with ${kind}`, () => {
    it("shows every latent that is not dead, and the card of the chosen one", () => {
      const { el, find } = open(fixture);
      expect(el.querySelectorAll(".nbs-row").length).toBe(11);
      expect(find("h3")?.textContent).toContain("Latent 0");
      expect(el.querySelectorAll(".nbs-bin").length).toBeGreaterThan(10);
      expect(find(".nbs-examples")?.querySelectorAll(kind === "texts" ? ".nbs-passage" : ".nbs-tile").length).toBe(3);
      expect(find(".nbs-examples .nbs-note")?.textContent).toContain("Top 3 of");
    });

    it("shows hostile strings as text and nothing else", () => {
      const { el, find } = open(fixture);
      expect(find(".nbs-what")?.textContent).toBe("<img src=x onerror=\"document.title='owned'\">");
      expect(find(".nbs-name")?.textContent).toContain("<img src=x");
      for (const latent of SAVED) {
        expect(el.querySelectorAll("script, [onerror], a, iframe").length, String(latent)).toBe(0);
      }
      expect(el.textContent).not.toMatch(/[\u202a-\u202e\u2066-\u2069]/);
      expect(document.title).not.toBe("owned");
    });

    it("says of a card that is not inside that it is not, at once", () => {
      const { model, find } = open(fixture);
      model.set("latent", UNSAVED);
      expect(find(".nbs-message")?.textContent).toContain(`latent ${UNSAVED} is not inside this saved view`);
      expect(find(".nbs-message code")?.textContent).toBe(`FeatureDashboard(analysis, saved=[${UNSAVED}])`);
      expect(find("[aria-busy]")).toBeNull();
      expect(model.sent).toEqual([]);
    });

    it("says of a dead latent that it never fired, and what to try", () => {
      const { model, find } = open(fixture);
      model.set("latent", DEAD);
      expect(find(".nbs-message")?.textContent).toMatch(/never active on these [\d,]+ rows.*analyse more inputs/);
      expect(find(".nbs-badge")?.textContent).toBe("dead");
    });
  });

  describe(`a live view with ${kind}`, () => {
    beforeEach(() => void vi.useFakeTimers());

    it("asks for a card that is not saved, and draws the answer", async () => {
      const { model, el, find, answer } = open(fixture, { kernel: true });
      model.answer({ id: model.sent[0]?.id, ok: true });
      model.set("latent", UNSAVED);
      expect(find("[aria-busy]")).not.toBeNull();
      await vi.advanceTimersByTimeAsync(2_000);
      expect(find(".nbs-waiting")?.textContent).toBe("A cell is running; the kernel will answer after it.");
      answer();
      await vi.advanceTimersByTimeAsync(0);
      expect(find("[aria-busy]")).toBeNull();
      expect(el.querySelectorAll(".nbs-bin").length).toBeGreaterThan(10);
    });

    it("shows an error of the kernel with its fix, and asks again", async () => {
      const { model, find, requests, answer } = open(fixture, { kernel: true });
      model.answer({ id: model.sent[0]?.id, ok: true });
      model.set("latent", UNSAVED);
      model.answer({ id: requests()[0]?.id, ok: false, error: { cause: "no <b>card</b>", fix: "do this" } });
      await vi.advanceTimersByTimeAsync(0);
      expect(find(".nbs-error")?.textContent).toContain("no <b>card</b>");
      expect(find(".nbs-fix")?.textContent).toBe("do this");
      model.sent.length = 0;
      find(".nbs-error button")?.click();
      expect(requests().length).toBe(1);
      answer();
      await vi.advanceTimersByTimeAsync(0);
      expect(find(".nbs-error")).toBeNull();
    });

    it("becomes a saved view when nobody answers, and live again when somebody does", async () => {
      const { model, find } = open(fixture, { kernel: true });
      model.set("latent", UNSAVED);
      expect(find("[aria-busy]")).not.toBeNull();
      await vi.advanceTimersByTimeAsync(PING_MS);
      expect(find(".nbs-message")).not.toBeNull();
      expect(find(".nbs-status")?.textContent).toBe("saved view");
      model.answer({ id: model.sent[0]?.id, ok: true });
      expect(find("[aria-busy]")).not.toBeNull();
      expect(find(".nbs-status")?.textContent).toBe("");
    });

    it("draws only the last of several cards that were asked for", async () => {
      const { model, find, answer } = open(fixture, { kernel: true });
      model.answer({ id: model.sent[0]?.id, ok: true });
      model.set("latent", UNSAVED);
      model.set("latent", 2);
      answer();
      await vi.advanceTimersByTimeAsync(0);
      expect(find("h3")?.textContent).toContain("Latent 2");
      expect(find("[aria-busy]")).toBeNull();
    });
  });
}

describe("the chosen latent", () => {
  it("goes to Python once for every change, and comes from there", () => {
    const { model, find, press } = open(patches);
    expect(model.saves).toBe(0);
    press("ArrowDown");
    expect([model.state.latent, model.saves]).toEqual([1, 1]);
    model.set("latent", 4);
    expect(find("h3")?.textContent).toContain("Latent 4");
    expect(model.saves).toBe(1);
    expect(find('.nbs-row[aria-selected="true"]')?.textContent).toContain("4");
  });
});

describe("keys", () => {
  it("search, step, list themselves and hide the heat map while held", () => {
    const { el, find, press, model } = open(patches);
    press("/");
    expect(document.activeElement).toBe(find(".nbs-search"));
    press("]");
    press("]");
    press("[");
    expect(model.state.latent).toBe(1);
    press("?");
    expect(find(".nbs-help")?.hidden).toBe(false);
    press("Escape");
    expect(find(".nbs-help")?.hidden).toBe(true);
    press("h");
    expect(find(".nbs-examples")?.style.getPropertyValue("--heat")).toBe("0");
    find(".nbs-list")?.dispatchEvent(new KeyboardEvent("keyup", { key: "h", bubbles: true }));
    expect(find(".nbs-examples")?.style.getPropertyValue("--heat")).toBe("0.7");
    press("t");
    expect(el.querySelectorAll(".nbs-interval").length).toBe(10);
  });

  it("are plain letters while somebody types", () => {
    const { find, press, model } = open(patches);
    press("]", find(".nbs-search"));
    expect(model.state.latent).toBe(0);
    expect(find(".nbs-feature")?.getAttribute("data-lm-suppress-shortcuts")).toBe("true");
  });
});

describe("the list", () => {
  it("is searched by number and by name, and sorted by its header", () => {
    const { el, find } = open(patches);
    const search = find(".nbs-search") as HTMLInputElement;
    const shown = () => [...el.querySelectorAll(".nbs-row .nbs-col-latent")].map((one) => one.textContent);
    const type = (query: string) => {
      search.value = query;
      search.dispatchEvent(new Event("input"));
    };
    type("GLASS");
    expect(shown()).toEqual(["1"]);
    type("10");
    expect(shown()).toEqual(["10"]);
    type("nothing like it");
    expect(find(".nbs-list")?.hidden).toBe(true);
    expect(find(".nbs-spoken")?.textContent).toBe("0 of 12 latents");
    type("");
    find(".nbs-sort.nbs-col-max")?.click();
    const most = [...el.querySelectorAll<HTMLElement>(".nbs-row .nbs-col-max")].map((one) => Number(one.textContent));
    expect(most).toEqual([...most].sort((a, b) => b - a));
    (el.querySelector(".nbs-filters input") as HTMLInputElement).click();
    expect(find(".nbs-spoken")?.textContent).toBe("12 of 12 latents");
  });
});

describe("the host", () => {
  it("may be an old one that gives no signal and no host", () => {
    const { el } = open(patches, { host: undefined as never });
    expect(el.querySelector(".nbs-error")).toBeNull();
  });

  it("gets everything back when the view closes", () => {
    const { model, close } = open(text);
    expect(document.head.querySelector("style")?.textContent).toContain('[data-nbsae="twin-1"]');
    close();
    close();
    expect(model.listening).toBe(0);
    expect(document.head.querySelector("style")).toBeNull();
  });

  it("never sees an error: it is drawn, and the static picture stays", () => {
    const model = new FakeModel({ twin: "twin-1" });
    const el = document.createElement("div");
    feature.render({ model, el });
    expect(el.querySelector(".nbs-error")?.textContent).toContain("could not be drawn");
    expect(document.head.querySelector("style")).toBeNull();
  });
});

describe("a text", () => {
  it.each([
    [{}, "budget k = "],
    [{ widths: [4, 8, 12, 24] }, "latents"],
    [{ budgets: [] }, "not nested"],
  ])("says what the level is in: %j", (about, words) => {
    const { find } = open(patches, { about });
    expect(find(".nbs-facts > :last-child")?.textContent).toMatch(/^Level/);
    expect(find(".nbs-facts > :last-child")?.textContent).toContain(words);
  });

  it("marks the peak, and says values under the cursor that arrows move", () => {
    const { el, find, press } = open(text);
    const line = el.querySelector<HTMLElement>(".nbs-tokens");
    const peak = line?.querySelector(".nbs-strongest");
    expect(peak).not.toBeNull();
    line?.focus();
    expect(peak?.getAttribute("aria-selected")).toBe("true");
    expect(find(".nbs-readout")?.textContent).toContain("activation");
    press("Home", line);
    expect(line?.querySelector(".nbs-token")?.getAttribute("aria-selected")).toBe("true");
    expect(el.querySelectorAll('.nbs-token[tabindex="0"]').length).toBe(0);
  });
});

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
