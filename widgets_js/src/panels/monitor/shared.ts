/** What the panels of the training monitor share. */

import { sig3 } from "../../core/format";
import type { Kernel } from "../../core/rpc";
import type { State } from "../../core/state";
import type { About, Looks, Note, Run, Series } from "./tables";

export type Tab = "curves" | "pareto" | "sample" | "features";
export type Axis = "rows" | "seconds";

export interface View {
  runs: Run[];
  series: (Series | undefined)[];
  looks: Looks | undefined;
  notes: Note[];
  /** Number of the run that facts, sample and buttons are about. */
  chosen: number;
  tab: Tab;
  axis: Axis;
  kernel: Kernel;
  /** Whether nobody is there: no answer, and no news either. */
  alone: boolean;
  /** Whether the kernel answers while it trains; undefined: not known yet. */
  hears: boolean | undefined;
}

export interface Panel {
  about: About;
  state: State<View>;
  /** Ask the kernel; rejects with a `ShownError`. */
  ask(kind: string, what: Record<string, unknown>): Promise<Record<string, unknown>>;
}

/** Whole names: the style sheet keeps the rules of those that stand in the script. */
export const COLOURS = ["nbs-c0", "nbs-c1", "nbs-c2", "nbs-c3", "nbs-c4", "nbs-c5"];
export const DASHES = ["", "6 3", "2 3"];

export function colour(at: number): string {
  return COLOURS[at % COLOURS.length] as string;
}

/** Where the colours are used up, dashes keep lines apart. */
export function dash(at: number): string {
  return DASHES[Math.floor(at / COLOURS.length) % DASHES.length] as string;
}

/** 42 s, 3 min 20 s, 2 h 05 min. */
export function duration(seconds: number): string {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 60) return `${sig3(seconds)} s`;
  const minutes = Math.floor(Math.round(seconds) / 60);
  const rest = Math.round(seconds) % 60;
  const padded = (number: number) => String(number).padStart(2, "0");
  return minutes < 60
    ? `${minutes} min ${padded(rest)} s`
    : `${Math.floor(minutes / 60)} h ${padded(minutes % 60)} min`;
}

/** Bytes as kB, MB or GB. */
export function size(bytes: number): string {
  const power = Math.min(3, Math.max(0, Math.floor(Math.log10(Math.max(1, bytes)) / 3)));
  return `${sig3(bytes / 1000 ** power)} ${["B", "kB", "MB", "GB"][power]}`;
}

export const STATES: Record<Run["state"], string> = {
  ready: "ready",
  running: "running",
  paused: "paused",
  stopping: "stopping",
  stopped: "stopped early",
  done: "done",
  failed: "failed",
};

export function goesOn(run: Run | undefined): boolean {
  return run !== undefined && ["running", "paused", "stopping"].includes(run.state);
}
