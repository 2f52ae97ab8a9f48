import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import fixture from "../../tests/fixtures/monitor.json";
import monitor from "../src/monitor";
import { logTicks, nearest } from "../src/panels/monitor/chart";
import { curvesOf } from "../src/panels/monitor/pareto";
import { dash, duration, size } from "../src/panels/monitor/shared";
import { levelText, type Run, seriesOf } from "../src/panels/monitor/tables";
import { FakeModel } from "./fake";
import { bytes, unaligned } from "./fixture";

const opened: (() => void)[] = [];

function stateOf(): Record<string, unknown> {
  const state: Record<string, unknown> = structuredClone(fixture.state);
  for (const name of fixture.binary as string[]) state[name] = unaligned(bytes(state[name] as string));
  return state;
}

function open({ kernel = true, answers = true }: { kernel?: boolean; answers?: boolean } = {}) {
  const model = new FakeModel(stateOf());
  const send = model.send.bind(model);
  model.send = (content) => {
    send(content);
    const { id, kind } = content as { id: number; kind: string };
    const extra =
      kind === "place"
        ? { folder: "runs/one" }
        : kind === "settings"
          ? { settings: { rows: 3, learning_rate: 0.006 } }
          : {};
    if (answers) model.answer({ id, ok: true, ...extra });
  };
  const el = document.createElement("div");
  document.body.append(el);
  const close = monitor.render({ model, el, host: { kernel } } as never);
  opened.push(close);
  const find = (selector: string) => el.querySelector<HTMLElement>(selector);
  const all = (selector: string) => [...el.querySelectorAll<HTMLElement>(selector)];
  const button = (text: string) => all("button").find((one) => one.textContent === text) as HTMLButtonElement;
  const update = (at: number, what: Partial<Run>) => {
    const runs = (model.get("runs") as Run[]).map((run, place) => (place === at ? { ...run, ...what } : run));
    model.set("runs", runs);
  };
  const kinds = () => model.sent.map(({ kind }) => kind).filter((kind) => kind !== "ping");
  return { model, el, close, find, all, button, update, kinds };
}

async function settle() {
  for (let turn = 0; turn < 5; turn += 1) await Promise.resolve();
}

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  for (const close of opened.splice(0)) close();
  document.body.replaceChildren();
  vi.useRealTimers();
});

describe("what is shown", () => {
  it("are the last numbers of the log, with three digits", () => {
    const { find, all } = open();
    const loss = fixture.state.runs[0]?.latest.loss ?? 0;
    expect(find(".nbs-facts")?.textContent).toContain(`Loss${loss.toPrecision(3)}`);
    expect(all(".nbs-run").map((one) => one.querySelector("bdi")?.textContent)).toEqual(
      fixture.state.runs.map(({ name }) => name),
    );
  });

  it("are the kept points as Python wrote them", () => {
    const runs = fixture.state.runs as unknown as Run[];
    const state = stateOf();
    const [first, second] = seriesOf(state.points_header, state.points, runs);
    expect(first?.steps).toEqual(Array.from({ length: 40 }, (_, at) => at + 1));
    expect(first?.of("rows")[39]).toBe(40 * 1024);
    expect(first?.of("rate")[5]).toBeCloseTo(51_200, -1);
    expect(second?.of("fvu_k4").at(-1)).toBeCloseTo(runs[1]?.latest.fvu_k4 as number, 5);
    expect(second?.of("nothing").every(Number.isNaN)).toBe(true);
  });

  it("is text, whatever a run is called", () => {
    const { el, all } = open();
    expect(el.querySelector("img, script")).toBeNull();
    expect(all(".nbs-notes li")[0]?.textContent).toContain("<script>");
  });

  it("has a sentence for every drawing, and a table for the curves", () => {
    const { all, find } = open();
    const labels = all(".nbs-plot svg").map((one) => one.getAttribute("aria-label"));
    expect(labels.length).toBe(6);
    expect(labels[0]).toMatch(/^FVU of the batch, log scale\. .*: from [\d.]+ to [\d.]+/);
    const details = find(".nbs-pane details") as HTMLDetailsElement;
    details.open = true;
    details.dispatchEvent(new Event("toggle"));
    const lines = details.querySelectorAll("tbody tr");
    expect(lines.length).toBeLessThanOrEqual(26);
    expect(lines[lines.length - 1]?.querySelector("th")?.textContent).toBe("40");
  });

  it("changes in place when the traits do", () => {
    const { find, all, update } = open();
    const line = find(".nbs-run");
    update(0, { step: 41, state: "paused" });
    expect(find(".nbs-run")).toBe(line);
    expect(line?.textContent).toContain("paused");
    expect(all(".nbs-facts b")[0]?.textContent).toBe("41");
  });

  it("stays when the run fails, and says why", () => {
    const { find, all, update } = open();
    update(0, { state: "failed", why: "NonFiniteError: the loss." });
    expect(find(".nbs-why")?.textContent).toContain("NonFiniteError: the loss.");
    expect(all(".nbs-plot svg path").length).toBeGreaterThan(0);
  });

  it("is said to be nothing where no run has begun", () => {
    const model = new FakeModel({ ...stateOf(), runs: [], notes: [] });
    const el = document.createElement("div");
    opened.push(monitor.render({ model, el, host: { kernel: false } } as never));
    expect(el.querySelector(".nbs-message:not([hidden])")?.textContent).toContain("No run has begun.");
  });
});

describe("the other views", () => {
  it("show FVU against k of every run as dots and as a table", () => {
    const { button, all } = open();
    button("FVU against k").click();
    expect(all(".nbs-pane:not([hidden]) circle").length).toBe(3 + 3 + 1);
    expect(all(".nbs-pane:not([hidden]) tbody tr").length).toBe(3);
  });

  it("show the sample at each budget and the strongest rows of latents", () => {
    const { button, all } = open();
    button("Sample").click();
    expect(all(".nbs-sample").length).toBe(8);
    expect(all(".nbs-sample")[0]?.textContent).toMatch(/k = 4[\d.]+ %k = 16[\d.]+ %k = 64[\d.]+ %/);
    button("Features").click();
    expect(all(".nbs-pane:not([hidden]) section").length).toBe(6);
    expect(all(".nbs-pane:not([hidden]) .nbs-tile").length).toBe(24);
  });

  it("say that there is no look, of a run without one", () => {
    const { button, find, all } = open();
    all(".nbs-run")[2]?.click();
    button("Sample").click();
    expect(find(".nbs-pane:not([hidden]) .nbs-none")?.textContent).toContain("No look at rows");
  });

  it("put a rule that sets no k at its L0", () => {
    const run = { name: "a", latest: { l0: 12.5 }, quality: [{ k: null, width: null, name: "fvu", fvu: 0.3 }] };
    expect(curvesOf([run as unknown as Run])[0]).toMatchObject({ own: true, points: [{ k: 12.5, fvu: 0.3 }] });
  });
});

describe("the buttons", () => {
  it("send what they say for the chosen run, once the kernel has answered while it trains", async () => {
    const { button, kinds, update, model } = open();
    await settle();
    expect(button("Pause").disabled).toBe(false);
    button("Pause").click();
    await settle();
    update(0, { state: "paused" });
    button("Continue").click();
    button("Stop").click();
    await settle();
    expect(kinds()).toEqual(["pause", "proceed", "stop"]);
    expect(model.sent.at(-1)).toMatchObject({ run: 0 });
  });

  it("save into the folder that the kernel suggests, and fork with the setting that was typed", async () => {
    const { button, find, model } = open();
    await settle();
    button("Save…").click();
    await settle();
    expect((find("[aria-label='Folder to save into']") as HTMLInputElement).value).toBe("runs/one");
    button("Save here").click();
    await settle();
    expect(model.sent.at(-1)).toMatchObject({ kind: "save", run: 0, folder: "runs/one" });
    button("Fork…").click();
    await settle();
    const value = find("[aria-label='Value in the fork']") as HTMLInputElement;
    expect(value.value).toBe("0.006");
    value.value = "0.001";
    button("Fork now").click();
    await settle();
    expect(model.sent.at(-1)).toMatchObject({ kind: "fork", settings: { learning_rate: "0.001" } });
  });

  it("close their forms when another run is chosen: folder and settings are of the run before", async () => {
    const { all, button } = open();
    await settle();
    for (const text of ["Save…", "Fork…"]) {
      button(text).click();
      await settle();
      expect(all(".nbs-form").filter((one) => !one.hidden)).toHaveLength(1);
      all(".nbs-run[aria-selected=false]")[0]?.click();
      expect(all(".nbs-form").filter((one) => !one.hidden)).toHaveLength(0);
      expect(button(text).getAttribute("aria-expanded")).toBe("false");
    }
  });

  it("say so where the kernel hears nothing while it trains, and news prove that it lives", async () => {
    const { button, find, update } = open({ answers: false });
    update(0, { step: 41 });
    update(0, { step: 42 });
    await vi.advanceTimersByTimeAsync(3_000);
    expect(button("Pause").disabled).toBe(true);
    expect(find("[role=status].nbs-note")?.textContent).toContain("hears nothing while a cell runs");
    expect(find(".nbs-status")?.textContent).toBe("");
  });

  it("are out of use in a saved view, which says what it is", async () => {
    const { button, find } = open({ kernel: false });
    await vi.advanceTimersByTimeAsync(10);
    for (const text of ["Pause", "Stop", "Save…", "Fork…"]) expect(button(text).disabled).toBe(true);
    expect(find(".nbs-status")?.textContent).toBe("saved view");
    expect(find(".nbs-run")?.textContent).toContain("running when this was saved");
  });

  it("are asked about anew when a run begins", async () => {
    const { update, button, model } = open();
    update(0, { state: "done" });
    await settle();
    expect(button("Pause").disabled).toBe(true);
    const before = model.sent.length;
    update(0, { state: "running" });
    await settle();
    expect(model.sent.slice(before).map(({ kind }) => kind)).toEqual(["ping"]);
    expect(button("Pause").disabled).toBe(false);
  });

  it("show the kernel's refusal", async () => {
    const { model, button, find } = open();
    await settle();
    model.send = (content) => {
      const { id } = content as { id: number };
      model.answer({ id, ok: false, error: { cause: "This session is not running.", fix: "" } });
    };
    button("Stop").click();
    await settle();
    expect(find(".nbs-error")?.textContent).toContain("not running");
  });
});

describe("manners", () => {
  it("speak at most once in five seconds, and the last state is said", async () => {
    const { find, update } = open();
    const said: (string | null)[] = [];
    const region = find(".nbs-spoken") as HTMLElement;
    const observer = new MutationObserver(() => said.push(region.textContent));
    observer.observe(region, { childList: true, characterData: true, subtree: true });
    for (let step = 41; step < 81; step += 1) {
      update(0, { step });
      await vi.advanceTimersByTimeAsync(250);
    }
    expect(said.length).toBeLessThanOrEqual(3);
    update(0, { state: "done", step: 400 });
    await vi.advanceTimersByTimeAsync(5_000);
    expect(region.textContent).toContain("done, step 400 of 400");
    observer.disconnect();
  });

  it("say when no word comes from the kernel", async () => {
    const { find } = open();
    await vi.advanceTimersByTimeAsync(20_000);
    expect(find(".nbs-status")?.textContent).toBe("no word from the kernel");
  });

  it("leave nothing behind", () => {
    const { model, close } = open();
    close();
    expect(model.listening).toBe(0);
    expect(vi.getTimerCount()).toBe(0);
  });

  it("choose runs with keys", () => {
    const { find, all } = open();
    const shell = find(".nbs-shell") as HTMLElement;
    const press = (key: string) => shell.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    press("]");
    expect(all(".nbs-run").map((one) => one.getAttribute("aria-selected"))).toEqual(["false", "true", "false"]);
    press("[");
    press("2");
    expect(find(".nbs-segments [aria-pressed=true]")?.textContent).toBe("FVU against k");
  });
});

describe("numbers", () => {
  it("are read as a person would", () => {
    expect([duration(42), duration(200), duration(7500), duration(Number.NaN)]).toEqual([
      "42.0 s",
      "3 min 20 s",
      "2 h 05 min",
      "–",
    ]);
    expect([size(312e6), size(999)]).toEqual(["312 MB", "999 B"]);
    expect([levelText("fvu_k16"), levelText("fvu_k16_w512"), levelText("fvu")]).toEqual([
      "k = 16",
      "k = 16, first 512",
      "own rule",
    ]);
  });

  it("are found by the nearest place", () => {
    expect([nearest([1, 5, 9], 6), nearest([1, 5, 9], 8), nearest([1], 9), nearest([1, 5], -3)]).toEqual([1, 2, 0, 0]);
  });

  it("have round marks on a log axis", () => {
    expect(logTicks(-1.2, 0.1)).toEqual([0.1, 0.3, 1]);
    expect(logTicks(-4, 1)).toEqual([1e-4, 1e-3, 0.01, 0.1, 1, 10]);
  });

  it("keep lines apart by dashes where colours are used up", () => {
    expect([dash(0), dash(6), dash(12)]).toEqual(["", "6 3", "2 3"]);
  });
});
