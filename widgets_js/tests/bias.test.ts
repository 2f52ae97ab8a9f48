import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import fixture from "../../tests/fixtures/bias.json";
import bias from "../src/bias";
import { csv } from "../src/core/download";
import { PING_MS } from "../src/core/rpc";
import { ticks } from "../src/panels/bias/curve";
import { widened } from "../src/panels/bias/errors";
import { tableCsv } from "../src/panels/bias/export";
import { roundUp } from "../src/panels/bias/shared";
import { Details, type Effect, Inputs, Report, ranked } from "../src/panels/bias/tables";
import { FakeModel } from "./fake";
import { bytes, unaligned } from "./fixture";

const opened: (() => void)[] = [];

function stateOf(): Record<string, unknown> {
  const state: Record<string, unknown> = { ...fixture.state };
  for (const name of fixture.binary as string[]) state[name] = unaligned(bytes(state[name] as string));
  return state;
}

function open({ kernel = false, about = {} }: { kernel?: boolean; about?: object } = {}) {
  const state = stateOf();
  state.about = { ...(state.about as object), ...about };
  const model = new FakeModel(state);
  const el = document.createElement("div");
  document.body.append(el);
  const close = bias.render({ model, el, host: { kernel } } as never);
  opened.push(close);
  const find = (selector: string) => el.querySelector<HTMLElement>(selector);
  const all = (selector: string) => [...el.querySelectorAll<HTMLElement>(selector)];
  const press = (key: string, target = find(".nbs-list")) =>
    target?.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  const click = (text: string, within = "button") =>
    all(within)
      .find((one) => one.textContent === text)
      ?.click();
  return { model, el, close, find, all, press, click };
}

function effect(own: Partial<Effect>): Effect {
  return { concept: 0, effect: 0, q: 1, masked: false, flagged: false, ...own } as Effect;
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

describe("the ranking", () => {
  it("compares effects only among those that pass, and puts masked ones last", () => {
    const lines = [
      effect({ concept: 0, effect: 0.9, q: 0.4 }),
      effect({ concept: 1, effect: 0.1, q: 0.01, flagged: true }),
      effect({ concept: 2, effect: -0.3, q: 0.04, flagged: true }),
      effect({ concept: 3, effect: Number.NaN, q: Number.NaN, masked: true }),
      effect({ concept: 4, effect: 0.01, q: 0.2 }),
    ];
    const { flagged, others } = ranked(lines);
    expect(flagged.map(({ concept }) => concept)).toEqual([2, 1]);
    expect(others.map(({ concept }) => concept)).toEqual([4, 0, 3]);
  });

  it("shows flagged concepts first, then a line, then the others with hollow dots", () => {
    const { all, find } = open();
    const rows = all(".nbs-row").sort((a, b) => Number(a.dataset.index) - Number(b.dataset.index));
    const apart = rows.findIndex((row) => row.classList.contains("nbs-apart"));
    expect(apart).toBeGreaterThan(0);
    expect(rows[apart]?.getAttribute("role")).toBe("presentation");
    for (const [at, row] of rows.entries()) {
      if (at === apart || row.querySelector(".nbs-masked")) continue;
      expect(Boolean(row.querySelector(".nbs-hollow"))).toBe(at > apart);
      expect(row.title).toMatch(/effect .+\[.+\], n = [\d,]+, q = /);
    }
    expect(find(".nbs-spoken")?.textContent).toBe(`${apart} of ${rows.length - 1} pass q ≤ 0.05`);
  });

  it("steps over the line between the parts, in both directions", () => {
    const { model, all, press } = open();
    const apart = all(".nbs-row").findIndex((row) => row.classList.contains("nbs-apart"));
    for (let step = 0; step < apart; step += 1) press("ArrowDown");
    const after = model.state.latent;
    press("ArrowUp");
    expect(model.state.latent).not.toBe(after);
    press("ArrowDown");
    expect(model.state.latent).toBe(after);
  });

  it("never shows a number of a masked group", () => {
    const { all, find, click } = open();
    const select = find(".nbs-filters select") as HTMLSelectElement;
    select.value = select.options[1]?.value ?? "";
    select.dispatchEvent(new Event("change"));
    const masked = all(".nbs-row").filter((row) => row.querySelector(".nbs-masked"));
    expect(masked).toHaveLength(1);
    expect(masked[0]?.querySelector(".nbs-masked")?.textContent).toBe("masked: n < 20");
    expect(masked[0]?.querySelector(".nbs-track")).toBeNull();
    click("Error gaps");
    const lines = all("tr").filter((one) => one.textContent?.includes("× Bald"));
    expect(lines).toHaveLength(4 + 1 + 1);
    for (const line of lines) {
      expect(line.textContent).toContain("masked: n < 20");
      expect(line.textContent?.replace("masked: n < 20", "")).not.toMatch(/\d/);
    }
  });

  it("finds by name, and by another measure", () => {
    const { find, all, click } = open();
    const search = find(".nbs-search") as HTMLInputElement;
    search.value = "BEARD";
    search.dispatchEvent(new Event("input"));
    expect(all(".nbs-row").filter((row) => row.textContent?.includes("beard"))).toHaveLength(1);
    search.value = "no such thing";
    search.dispatchEvent(new Event("input"));
    expect(find(".nbs-none")?.hidden).toBe(false);
    search.value = "";
    search.dispatchEvent(new Event("input"));
    click("Reliance");
    expect(find(".nbs-facts")?.textContent).toContain("Reliance");
    expect(all(".nbs-row .nbs-band").length).toBeGreaterThan(0);
  });
});

describe("a saved view", () => {
  it("writes hostile names as text", () => {
    const { el, model } = open();
    for (const latent of [3, 10, 17, 24]) model.set("latent", latent);
    expect(el.querySelectorAll("script, iframe, [onerror]").length).toBe(0);
    expect(el.textContent).toContain("<img src=x");
    expect(el.textContent).not.toMatch(/[‪-‮⁦-⁩]/);
  });

  it("shows the curve with its bands, and leads from a curve to its input", () => {
    const { all, find } = open();
    expect(all("path.nbs-one").length).toBe(4);
    expect(all("path.nbs-mean").length).toBe(2);
    const tile = find("button.nbs-tile");
    tile?.click();
    expect(find(".nbs-drawer")?.hidden).toBe(false);
    expect(find(".nbs-drawer h4")?.textContent).toContain("p(Smiling) when the concept is set");
    expect(all("path.nbs-marked")).toHaveLength(1);
  });

  it("opens the inputs behind a number and gives the focus back", () => {
    const { find, press, all } = open();
    const number = find(".nbs-number") as HTMLElement;
    number.focus();
    number.click();
    expect(find(".nbs-drawer")?.hidden).toBe(false);
    expect(all(".nbs-drawer .nbs-tile").length).toBe(8);
    expect(document.activeElement?.getAttribute("aria-label")).toBe("Close");
    press("Escape", find(".nbs-drawer"));
    expect(find(".nbs-drawer")?.hidden).toBe(true);
    expect(document.activeElement).toBe(number);
  });

  it("says of a concept beyond the saved ones that it is not inside", () => {
    const { find, press } = open({ about: { saved: 1 } });
    press("]", find(".nbs-shell"));
    expect(find(".nbs-message")?.textContent).toMatch(/not inside this saved view.*details of the 1/);
  });

  it("shows errors, groups and retrieval on their own pages", () => {
    const { find, all, press } = open();
    press("2", find(".nbs-shell"));
    expect(all("h4").some((one) => one.textContent === "Errors of the classifier by group")).toBe(true);
    press("3", find(".nbs-shell"));
    const number = all(".nbs-number").filter((one) => one.title === "Show the first hits");
    expect(number.map((one) => one.textContent)).toEqual(["0.520", "0.190", "0.520", "0.190"]);
    number[0]?.click();
    expect(all(".nbs-drawer .nbs-tile").length).toBe(8);
  });

  it("leaves no listener behind", () => {
    const { model, close, el } = open();
    close();
    expect(model.listening).toBe(0);
    expect(el).toBeDefined();
  });
});

describe("a live view", () => {
  beforeEach(() => void vi.useFakeTimers());

  it("asks for a concept that is not saved and draws the answer", async () => {
    const { model, find, all } = open({ kernel: true, about: { saved: 0 } });
    model.answer({ id: model.sent[0]?.id, ok: true });
    model.set("latent", fixture.asked.latent);
    const asked = model.sent.filter(({ kind }) => kind === "concept");
    expect(find("[aria-busy]")).not.toBeNull();
    await vi.advanceTimersByTimeAsync(2_100);
    expect(find(".nbs-waiting")?.textContent).toContain("A cell is running");
    const id = asked.at(-1)?.id;
    model.answer({ id, ok: false, error: { cause: "no <b>card</b>", fix: "do this" } });
    await vi.advanceTimersByTimeAsync(0);
    expect(find(".nbs-error")?.textContent).toContain("no <b>card</b>");
    all(".nbs-error .nbs-button").at(-1)?.click();
    const again = model.sent.filter(({ kind }) => kind === "concept").at(-1);
    expect(again?.latent).toBe(fixture.asked.latent);
    const buffers = fixture.asked.buffers.map((one) => unaligned(bytes(one)));
    model.answer({ ...(fixture.asked.content as object), id: again?.id, ok: true }, buffers);
    await vi.advanceTimersByTimeAsync(0);
    expect(all("path.nbs-one").length).toBe(4);
  });

  it("becomes a saved view where nobody answers", async () => {
    const { find } = open({ kernel: true });
    await vi.advanceTimersByTimeAsync(PING_MS + 1);
    expect(find(".nbs-top .nbs-status")?.textContent).toBe("saved view");
  });
});

describe("tables as CSV", () => {
  it("quotes what must be quoted and leaves missing numbers empty", () => {
    const lines = [
      ['say "a", b', Number.NaN],
      ["line\nbreak", 0.10000000149011612],
    ];
    expect(csv(["a", "b"], lines)).toBe('a,b\r\n"say ""a"", b",\r\n"line\nbreak",0.1\r\n');
  });

  it("holds every line with names for codes, and no number of a masked group", () => {
    const state = stateOf();
    const report = new Report(state.overview_header, state.overview, state.about as never);
    const saved = new Details(state.details_header, state.details, () => true);
    const panel = { report, source: { saved, inputs: new Inputs() } } as never;
    const association = tableCsv(panel, "association").trim().split("\r\n");
    expect(association).toHaveLength(1 + 2 * 8);
    expect(association[0]).toMatch(/^concept,latent,group,given,effect,ci_low,ci_high,difference,n,/);
    const masked = association.filter((line) => line.endsWith(",true"));
    expect(masked).toHaveLength(1);
    expect(masked[0]).toMatch(/,not Male,+true$/);
    const curves = tableCsv(panel, "image_curves").trim().split("\r\n");
    expect(curves[0]).toContain("probability");
    expect(tableCsv(panel, "errors")).toContain("Male × Bald");
  });
});

describe("axes", () => {
  it("round their ends and hold 0", () => {
    expect([0.37, 0.0041, 12, 0].map(roundUp)).toEqual([0.4, 0.005, 15, 1]);
    expect(ticks(-0.11, 0.52)).toContain(0);
    expect(ticks(-0.11, 0.52).length).toBeLessThan(8);
    expect(widened(0.9, 0.9)).toEqual([0.85, 0.95]);
  });
});
