/** What the panels of the atlas share. */

import type { Kernel } from "../../core/rpc";
import type { State } from "../../core/state";
import type { Card } from "../tables";
import type { Camera } from "./places";
import type { Atlas } from "./tables";

export type Mode = "move" | "lasso" | "box";

export interface View {
  /** The picked latent. */
  latent: number;
  /** The chosen latents, ascending. */
  selected: readonly number[];
  /** Column that colours. */
  colour: string;
  /** Whether a point's size says how dense its latent is. */
  sized: boolean;
  mode: Mode;
  camera: Camera;
  query: string;
  /** Latents that the query found; undefined without one. */
  found: readonly number[] | undefined;
  /** More were found than were named. */
  cut: boolean;
  kernel: Kernel;
  labels: unknown;
}

export interface Facts {
  density: number;
  active_rows: number;
  mean: number;
  max: number;
  dead: boolean;
}

export interface Asked {
  card: Card | undefined;
  /** Exact numbers; undefined from the saved view, which holds bytes. */
  facts: Facts | undefined;
}

/** Where everything comes from; panels never see the widget's model. */
export interface Source {
  card(latent: number): Asked | undefined;
  /** From the kernel. Rejects with an error to show. */
  ask(latent: number): Promise<Asked>;
  find(text: string): Promise<{ latents: number[]; cut: boolean }>;
  /** Bytes of a column from the kernel. */
  column(key: string): Promise<void>;
}

export interface Panel {
  atlas: Atlas;
  state: State<View>;
  source: Source;
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
