import { beforeEach, describe, expect, it, vi } from "vitest";
import patches from "../../tests/fixtures/patches.json";
import text from "../../tests/fixtures/text.json";
import { PING_MS } from "../src/core/rpc";
import feature from "../src/feature";
import { FakeModel } from "./fake";
import { closeEach, type Fixture, open, UNSAVED } from "./feature-view";

const SAVED = [0, 1, 2, 3, 4];
const DEAD = 11;

closeEach();

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
      expect(find(".nbs-status")?.textContent).toBe("asking the kernel …");
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
