/** The concept dashboard: find a concept, see what it is, and move it on an input. */

import { bdi, h } from "./core/dom";
import { visible } from "./core/format";
import { attempt, dashboard, onTrait } from "./core/host";
import type { AnyModel, Life } from "./core/life";
import { kernelStatus, Rpc } from "./core/rpc";
import { State } from "./core/state";
import { unpack } from "./core/wire";
import { cardPanel } from "./panels/concept/card";
import { editorPanel } from "./panels/concept/editor";
import { keysPanel } from "./panels/concept/keys";
import { listPanel } from "./panels/concept/list";
import type { Panel, Source, View } from "./panels/concept/shared";
import { type About, Answers, Concepts } from "./panels/concept/tables";
import { CardSet } from "./panels/tables";

/** Answers of the kernel whose pictures are kept. */
const KEPT_ANSWERS = 12;

export default dashboard((model, el, life) => {
  const about = model.get("about") as About;
  const { concepts: table } = unpack(model.get("concepts_header"), model.get("concepts"));
  if (!table) throw new Error("The dashboard's state holds no table of concepts. Run the cell again.");
  const rpc = new Rpc(model, life);
  const state = new State<View>(
    {
      latent: model.get("latent") as number,
      text: "",
      all: false,
      kernel: rpc.kernel,
      query: undefined,
      set: new Map(),
      order: [],
    },
    life.fail,
  );
  const panel: Panel = { about, concepts: new Concepts(table), state, source: source(model, rpc, life, about) };
  life.accepts = (latent) => panel.concepts.rowOf(latent) >= 0;
  const root = h("div", {
    class: "nbs-dash nbs-concept",
    "data-lm-suppress-shortcuts": "true",
    role: "region",
    "aria-label": "Concept dashboard",
  });
  const bar = h(
    "div",
    { class: "nbs-top" },
    bdi(visible(about.title), "nbs-what"),
    bdi(visible(about.rule), "nbs-site"),
  );
  bar.append(kernelStatus(rpc, life, "No kernel answers: what was saved can be explored"));
  const list = h("div", { class: "nbs-latents" });
  const card = h("div");
  const editor = h("div", { class: "nbs-section" });
  const scroll = h("div", { class: "nbs-scroll" }, card, editor);
  const shell = h(
    "div",
    { class: "nbs-shell" },
    bar,
    h("div", { class: "nbs-main" }, list, h("div", { class: "nbs-card" }, scroll)),
  );
  root.append(shell);
  el.append(root);

  life.add(rpc.onKernel((kernel) => state.set("kernel", kernel)));
  life.add(keysPanel(shell, panel));
  life.add(listPanel(list, panel));
  life.add(cardPanel(card, panel));
  life.add(editorPanel(editor, panel));
  life.add(
    state.on(["latent"], () => {
      if (model.get("latent") === state.get("latent")) return;
      model.set("latent", state.get("latent"));
      model.save_changes();
    }),
  );
  life.add(onTrait(model, "latent", (latent) => state.set("latent", latent as number)));
});

/** Answers: saved ones from the traits, the others from the kernel. */
function source(model: AnyModel, rpc: Rpc, life: Life, about: About): Source {
  const of = (name: string) =>
    [
      model.get(`${name}_header`),
      model.get(name),
      model.get(`${name}_thumbs_header`),
      model.get(`${name}_thumbs`),
    ] as const;
  const cards = attempt(life, () => new CardSet(...of("cards")), new CardSet());
  const saved = about.edits ? attempt(life, () => new Answers(...of("answers")), undefined) : undefined;
  const kept: Answers[] = [];
  life.add(() => {
    cards.dispose();
    saved?.dispose();
    for (const one of kept) one.dispose();
  });
  const ask = async (kind: string, what: Record<string, unknown>) => {
    const { content, buffers } = await rpc.request(kind, what);
    const answers = new Answers(content.header, buffers[0], content.thumbs_header, buffers[1]);
    kept.push(answers);
    return answers;
  };
  return {
    cards,
    saved,
    edit: async (query, set) => {
      const [only] = set.size === 1 ? [...set] : [];
      const known = only && saved?.queries[query.number]?.row === query.row && saved.after(query.number, ...only);
      if (known) return known;
      if (rpc.kernel === "none") return undefined;
      const answers = await ask("edit", { row: query.row, set: [...set] });
      // The pictures of the oldest answers are given back; queries keep theirs.
      const edits = kept.filter(({ queries }) => queries.length === 0);
      for (const old of edits.slice(0, -KEPT_ANSWERS)) {
        old.dispose();
        kept.splice(kept.indexOf(old), 1);
      }
      return answers.first();
    },
    another: async () => {
      const [query] = (await ask("another", {})).queries;
      if (!query) throw new Error("The kernel's answer holds no input.");
      return { ...query, number: -1 };
    },
  };
}
