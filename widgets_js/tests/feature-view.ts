/** The feature dashboard on a fake model, closed after each test. */

import { afterEach, beforeEach, vi } from "vitest";
import type patches from "../../tests/fixtures/patches.json";
import type text from "../../tests/fixtures/text.json";
import feature from "../src/feature";
import { FakeModel } from "./fake";
import { bytes, unaligned } from "./fixture";

export const UNSAVED = 7;

const opened: (() => void)[] = [];

export type Fixture = typeof patches | typeof text;

interface Setting {
  kernel?: boolean;
  host?: object;
  about?: object;
}

export function open(fixture: Fixture, { kernel = false, host, about }: Setting = {}) {
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

/** Calls to put before the tests of a file. */
export function closeEach(): void {
  beforeEach(() => {
    URL.createObjectURL = () => "blob:thumb";
    URL.revokeObjectURL = () => {};
  });
  afterEach(() => {
    for (const close of opened.splice(0)) close();
    document.body.replaceChildren();
    vi.useRealTimers();
  });
}
