/** The feature dashboard: connects the widget's model to the panels, which know only tables and state. */

import { bdi, h } from "./core/dom";
import { visible } from "./core/format";
import { attempt, dashboard, onTrait } from "./core/host";
import type { AnyModel, Life } from "./core/life";
import { kernelStatus, Rpc } from "./core/rpc";
import { State } from "./core/state";
import { unpack } from "./core/wire";
import { cardPanel } from "./panels/card";
import { keysPanel } from "./panels/help";
import { latentsPanel } from "./panels/latents";
import type { Panel, Source, View } from "./panels/shared";
import { type About, type Card, CardSet, Latents, readingOf } from "./panels/tables";

/** Cards from the kernel that are kept: going back is free, and memory stays bounded. */
const KEPT_CARDS = 24;

export default dashboard((model, el, life) => {
  const about = model.get("about") as About;
  const { latents: table } = unpack(model.get("latents_header"), model.get("latents"));
  if (!table) throw new Error("The dashboard's state holds no table of latents. Run the cell again.");
  const latents = new Latents(table);
  latents.readNotes(model.get("notes"));
  const rpc = new Rpc(model, life);
  const state = new State<View>(
    {
      latent: model.get("latent") as number,
      query: "",
      sort: "latent",
      descending: false,
      showDead: false,
      savedOnly: false,
      examples: "top",
      heat: true,
      opacity: 0.7,
      held: false,
      scale: "card",
      kernel: rpc.kernel,
      notes: model.get("notes"),
      order: [],
    },
    life.fail,
  );
  const panel: Panel = { about, latents, state, source: source(model, rpc, life) };
  const root = h("div", {
    class: "nbs-dash nbs-feature",
    "data-lm-suppress-shortcuts": "true",
    role: "region",
    "aria-label": "Feature dashboard",
  });
  const list = h("div", { class: "nbs-latents" });
  const card = h("div", { class: "nbs-card" });
  const bar = h("div", { class: "nbs-top" }, bdi(visible(about.title), "nbs-what"));
  if (!about.title.includes(about.site)) bar.append(bdi(visible(about.site), "nbs-site"));
  bar.append(kernelStatus(rpc, life, "No kernel answers: what was saved can be explored"));
  root.append(h("div", { class: "nbs-shell" }, bar, h("div", { class: "nbs-main" }, list, card)));
  el.append(root);

  life.add(
    onTrait(model, "notes", (notes) => {
      latents.readNotes(notes);
      state.set("notes", notes);
    }),
  );
  life.add(rpc.onKernel((kernel) => state.set("kernel", kernel)));
  life.add(keysPanel(bar.parentElement as HTMLElement, panel));
  life.add(latentsPanel(list, panel));
  life.add(cardPanel(card, panel));
  life.add(
    state.on(["latent"], () => {
      if (model.get("latent") === state.get("latent")) return;
      model.set("latent", state.get("latent"));
      model.save_changes();
    }),
  );
  life.add(onTrait(model, "latent", (latent) => state.set("latent", latent as number)));
});

/** Cards: saved ones from the traits, the others from the kernel. */
function source(model: AnyModel, rpc: Rpc, life: Life): Source {
  const get = (key: string) => model.get(key);
  const own = () => new CardSet(get("saved_header"), get("saved"), get("thumbs_header"), get("thumbs"));
  const saved = attempt(life, own, new CardSet());
  const kept = new Map<number, { set: CardSet; card: Card }>();
  life.add(() => {
    saved.dispose();
    for (const { set } of kept.values()) set.dispose();
  });
  const keep = (latent: number, set: CardSet, card: Card) => {
    kept.get(latent)?.set.dispose();
    kept.delete(latent);
    kept.set(latent, { set, card });
    for (const [oldest, one] of kept) {
      if (kept.size <= KEPT_CARDS) break;
      one.set.dispose();
      kept.delete(oldest);
    }
  };
  const cards = new Map<number, Card>();
  return {
    savedCount: saved.size,
    isSaved: (latent) => saved.has(latent),
    saved: (latent) => {
      const known = cards.get(latent) ?? saved.card(latent);
      if (known) cards.set(latent, known);
      return known;
    },
    asked: (latent) => kept.get(latent)?.card,
    ask: async (latent) => {
      const { content, buffers } = await rpc.request("card", { latent });
      const set = new CardSet(content.header, buffers[0], content.thumbs_header, buffers[1]);
      const card = set.card(latent);
      if (!card) throw new Error(`The kernel's answer holds no card of latent ${latent}.`);
      keep(latent, set, card);
      return card;
    },
    // Empty takes a part away; nothing would leave it as it was.
    note: async (latent, { label, rating, comment }) => {
      await rpc.request("note", { latent, label: label ?? "", rating: rating ?? 0, comment: comment ?? "" });
    },
    read: async (latent, text) => {
      const { content, buffers } = await rpc.request("read", { latent, text });
      return readingOf(content.header, buffers[0]);
    },
  };
}
