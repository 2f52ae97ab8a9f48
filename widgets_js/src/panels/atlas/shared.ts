/** What the panels of the atlas share. */

import { h, listen } from "../../core/dom";
import type { Kernel } from "../../core/rpc";
import type { State } from "../../core/state";
import type { Card } from "./cards";
import type { Camera } from "./places";
import type { Atlas, Ground } from "./tables";

export type Mode = "move" | "lasso" | "box";

export interface View {
  /** The picked latent. */
  latent: number;
  /** The chosen latents, ascending. */
  selected: readonly number[];
  /** Column that colours. */
  colour: string;
  mode: Mode;
  camera: Camera;
  query: string;
  /** Latents that the query found; undefined without one. */
  found: readonly number[] | undefined;
  /** More were found than were named. */
  cut: boolean;
  kernel: Kernel;
  labels: unknown;
  /** What the map is painted on. */
  ground: Ground;
}

/** Where everything comes from; panels never see the widget's model. */
export interface Source {
  card(latent: number): Card | undefined;
  /** From the kernel. Rejects with an error to show. */
  ask(latent: number): Promise<Card | undefined>;
  find(text: string): Promise<{ latents: number[]; cut: boolean }>;
  /** Bytes of a column from the kernel. */
  column(key: string): Promise<void>;
}

export interface Panel {
  atlas: Atlas;
  state: State<View>;
  source: Source;
}

/** A small button that says what it does. */
export function button(text: string, act: () => void, title?: string): HTMLButtonElement {
  const one = h("button", { type: "button", class: "nbs-button", title }, text);
  listen(one, "click", act);
  return one;
}

export type Say = (parts: string[]) => void;

/** What stands out, and is listed: what was found, else what was chosen; undefined: everything. */
export function shown({ state }: Panel): readonly number[] | undefined {
  const selected = state.get("selected");
  return state.get("found") ?? (selected.length ? selected : undefined);
}

/** Change the choice: in place of it, added to it, or taken from it. `latents` are ascending. */
export function choose({ state }: Panel, latents: readonly number[], how: "set" | "add" | "take"): void {
  const named = new Set(how === "set" ? [] : latents);
  const rest = how === "set" ? [] : state.get("selected").filter((latent) => !named.has(latent));
  if (how === "add")
    state.set(
      "selected",
      [...rest, ...latents].sort((a, b) => a - b),
    );
  else state.set("selected", how === "set" ? latents : rest);
}
