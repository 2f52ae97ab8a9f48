/** What the panels of the feature dashboard share. */

import type { Kernel } from "../core/rpc";
import type { State } from "../core/state";
import type { About, Card, Latents, Note, Reading } from "./tables";

export type SortKey = "latent" | "name" | "level" | "density" | "max";

export interface View {
  latent: number;
  query: string;
  sort: SortKey;
  descending: boolean;
  showDead: boolean;
  savedOnly: boolean;
  examples: "top" | "intervals";
  heat: boolean;
  /** Opacity of the heat map, 0 … 1. */
  opacity: number;
  /** The pictures alone for as long as a key is held. */
  held: boolean;
  /** Colours run to the card's largest activation, or to each example's own. */
  scale: "card" | "example";
  kernel: Kernel;
  /** The notes as they came; those to use are in `latents`. */
  notes: unknown;
  /** Latents in the order of the list, for previous and next. */
  order: ArrayLike<number>;
}

/** Where cards come from; panels never see the widget's model. */
export interface Source {
  saved(latent: number): Card | undefined;
  isSaved(latent: number): boolean;
  savedCount: number;
  /** From the kernel. Rejects with an error to show. */
  ask(latent: number): Promise<Card>;
  /** A whole card that the kernel gave before. */
  asked(latent: number): Card | undefined;
  /** Keep what the user says. Rejects with an error to show. */
  note(latent: number, note: Note): Promise<void>;
  /** A text of the user as the model sees it. Rejects with an error to show. */
  read(latent: number, text: string): Promise<Reading>;
}

export interface Panel {
  about: About;
  latents: Latents;
  source: Source;
  state: State<View>;
}

/** Say what lies under the pointer or the focus, in the line at the foot. */
export type Readout = (parts: string[]) => void;
