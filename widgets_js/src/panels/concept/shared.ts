/** What the panels of the concept dashboard share. */

import type { Kernel } from "../../core/rpc";
import type { State } from "../../core/state";
import type { CardSet } from "../tables";
import type { About, Answer, Answers, Concepts, Query } from "./tables";

export interface View {
  latent: number;
  text: string;
  /** Also those whose name was not accepted. */
  all: boolean;
  kernel: Kernel;
  query: Query | undefined;
  /** Latent → the activation it is set to; as a new map after every change. */
  set: ReadonlyMap<number, number>;
  order: ArrayLike<number>;
}

/** Where answers come from; panels never see the widget's model. */
export interface Source {
  cards: CardSet;
  saved: Answers | undefined;
  /** Set latents of a query; from the saved grid where it holds the edit, else from the kernel. */
  edit(query: Query, set: ReadonlyMap<number, number>): Promise<Answer | undefined>;
  /** Another input, from the kernel. */
  another(): Promise<Query>;
}

export interface Panel {
  about: About;
  concepts: Concepts;
  source: Source;
  state: State<View>;
}
