import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import patches from "../../tests/fixtures/patches.json";
import feature from "../src/feature";
import { FakeModel } from "./fake";
import { bytes, unaligned } from "./fixture";

const HOSTILE = "<img src=x onerror=\"document.title='owned'\">";
const opened: (() => void)[] = [];

function open(notes: unknown, live = true) {
  const state: Record<string, unknown> = { ...patches.state, latent: 0, notes };
  for (const name of patches.binary) state[name] = unaligned(bytes(state[name] as string));
  const model = new FakeModel(state);
  const el = document.createElement("div");
  document.body.append(el);
  opened.push(feature.render({ model, el, host: { kernel: live } } as never));
  if (live) model.answer({ id: model.sent[0]?.id, ok: true });
  const find = <E extends HTMLElement = HTMLElement>(selector: string) => el.querySelector<E>(selector) as E;
  const label = find<HTMLInputElement>("[aria-label='Your label']");
  const comment = find<HTMLTextAreaElement>("[aria-label='Your comment']");
  const type = (field: HTMLInputElement | HTMLTextAreaElement, text: string) => {
    field.value = text;
    field.dispatchEvent(new Event("input"));
  };
  const sent = () => model.sent.filter(({ kind }) => kind === "note");
  const star = (rating: number) => find<HTMLButtonElement>(`[aria-label='${rating} of 5']`);
  const save = [...el.querySelectorAll("button")].find((one) => one.textContent === "Save") as HTMLButtonElement;
  const words = () => find("details [role=status]").textContent;
  return { model, el, find, label, comment, type, sent, star, save, words, editor: label.closest("details") };
}

const reply = async (model: FakeModel, content: object) => {
  model.answer({ id: model.sent.at(-1)?.id, ...content });
  await vi.advanceTimersByTimeAsync(0);
};

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

describe("a note with a kernel", () => {
  it("is sent as it was typed, and shown when the kernel has kept it", async () => {
    const { model, find, label, comment, type, sent, star, save, words, editor } = open({});
    expect(editor?.hidden).toBe(false);
    expect(save.disabled).toBe(true);
    type(label, "my glasses");
    type(comment, "thick frames");
    star(4).click();
    expect(words()).toBe("Not saved yet");
    save.click();
    expect(sent()).toMatchObject([{ latent: 0, label: "my glasses", rating: 4, comment: "thick frames" }]);
    expect(words()).toBe("Saving …");
    model.set("notes", { 0: { label: "my glasses", rating: 4, comment: "thick frames" } });
    await reply(model, { ok: true });
    expect(words()).toBe("Saved");
    expect(save.disabled).toBe(true);
    expect(find("h3 .nbs-name").textContent).toBe("my glasses");
    expect(find("h3 .nbs-badge").textContent).toContain("automatic: <img");
    expect(find("[aria-selected=true] .nbs-col-name").textContent).toBe("my glasses");
    expect(find("[aria-label='Rated 4 of 5']").textContent).toBe("★★★★☆");
  });

  it("keeps what was typed when the kernel refuses, and says why", async () => {
    const { model, find, label, type, save, words } = open({});
    type(label, "kept");
    save.click();
    await reply(model, { ok: false, error: { cause: "notes.parquet cannot be <written>", fix: "" } });
    expect(find(".nbs-error").textContent).toContain("notes.parquet cannot be <written>");
    expect(label.value).toBe("kept");
    expect(words()).toBe("Not saved yet");
    expect(save.disabled).toBe(false);
    save.click();
    expect(find("details .nbs-error")).toBeNull();
  });

  it("takes every part away again", async () => {
    const { model, label, comment, type, sent, star, save } = open({
      0: { label: "x", rating: 2, comment: "y" },
    });
    expect([label.value, comment.value, star(2).getAttribute("aria-pressed")]).toEqual(["x", "y", "true"]);
    type(label, "");
    type(comment, "");
    star(2).click();
    save.click();
    expect(sent()).toMatchObject([{ latent: 0, label: "", rating: 0, comment: "" }]);
    model.set("notes", {});
    await reply(model, { ok: true });
    expect(star(2).getAttribute("aria-pressed")).toBe("false");
  });

  it("loses no draft while other latents are looked at, or when another view saves", () => {
    const { model, label, type } = open({});
    type(label, "half a th");
    model.set("latent", 1);
    expect(label.value).toBe("");
    model.set("notes", { 1: { label: "from Python", rating: null, comment: null } });
    expect(label.value).toBe("from Python");
    model.set("latent", 0);
    expect(label.value).toBe("half a th");
    model.set("notes", { 0: { label: "from Python", rating: null, comment: null } });
    expect(label.value).toBe("half a th");
  });

  it("is reached and saved with keys alone, and its letters are no commands", () => {
    const { model, el, find, label, type, sent, editor } = open({});
    document.body.append(el);
    const key = (target: Element, name: string, more = {}) =>
      target.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true, ...more }));
    key(find(".nbs-list"), "n");
    expect((editor as HTMLDetailsElement).open).toBe(true);
    expect(document.activeElement).toBe(label);
    type(label, "]");
    key(label, "]");
    expect(model.get("latent")).toBe(0);
    key(label, "Enter");
    expect(sent()).toMatchObject([{ label: "]" }]);
  });
});

describe("a note without a kernel", () => {
  it("is shown and cannot be changed", () => {
    const { find, editor } = open({ 0: { label: HOSTILE, rating: 3, comment: `${HOSTILE}\nsecond` } }, false);
    expect(editor?.hidden).toBe(true);
    expect(find("h3 .nbs-name").textContent).toBe(HOSTILE);
    expect(find(".nbs-card .nbs-said").textContent).toBe(`★★★☆☆ ${HOSTILE}↵second`);
    expect(document.querySelectorAll("[onerror]").length).toBe(0);
  });

  it.each([[{}], [null], [undefined]])("leaves no empty place: %j", (notes) => {
    const { editor } = open(notes, false);
    expect(editor?.parentElement?.hidden).toBe(true);
  });
});

it("is not offered by an analysis that keeps none", () => {
  const { editor } = open(null);
  expect(editor?.hidden).toBe(true);
});

it("gives a label to a list that had no names", () => {
  const { model, el, find } = open({});
  const closed = opened.length;
  expect(closed).toBe(1);
  const header = find<HTMLButtonElement>(".nbs-head .nbs-col-name");
  expect(header.hidden).toBe(false);
  model.set("notes", { 5: { label: "hat", rating: null, comment: null } });
  const rows = [...el.querySelectorAll(".nbs-row")].map((row) => row.textContent);
  expect(rows.some((row) => row?.includes("hat"))).toBe(true);
  const search = find<HTMLInputElement>("[type=search]");
  search.value = "hat";
  search.dispatchEvent(new Event("input"));
  expect(el.querySelectorAll(".nbs-row").length).toBe(1);
});
