/** The cards of a chain, side by side: what the latent of each layer is active on. */

import { attr, bdi, h, listen } from "../../core/dom";
import { errorCard } from "../../core/errors";
import { sig3 } from "../../core/format";
import { State } from "../../core/state";
import { imagesPanel } from "../images";
import type { Panel as CardPanel, View as CardView } from "../shared";
import type { Card } from "../tables";
import { textsPanel } from "../texts";
import { note, type Panel, type Say } from "./shared";
import { chainOf, KINDS, type Link, placeOf } from "./tables";

const ASKING = "Asking the kernel …";
const LATER_MS = 40;

export function chainPanel(root: HTMLElement, panel: Panel, say: Say): () => void {
  const { flow, source, state } = panel;
  const strip = h("div", { class: "nbs-chain", role: "group", "aria-label": "Cards of the chain, from early to late" });
  strip.style.flex = "none";
  const status = h("div", { role: "status" });
  root.append(status, strip);
  let clear = () => {};
  let drawn = "";
  let turn = 0;

  const draw = () => {
    const chain = chainOf(flow, state.get("chosen"));
    const cards = chain.map(({ key }) => source.card(key));
    const stamp = chain.map(({ key, node }, at) => `${key}${cards[at] ? "c" : ""}${node ? "n" : ""}`).join(" ");
    if (stamp === drawn) return mark();
    drawn = stamp;
    clear();
    const stops: (() => void)[] = [];
    strip.replaceChildren(...chain.map((link, at) => column(panel, link, cards[at], say, stops)));
    clear = () => {
      for (const stop of stops) stop();
    };
    mark();
  };
  /** Cards stay from latent to latent of a chain; which one is chosen, and the cosines towards it, do not. */
  const mark = () => {
    const chain = chainOf(flow, state.get("chosen"));
    for (const [at, one] of ([...strip.children] as HTMLElement[]).entries()) {
      const link = chain[at];
      const facts = one.querySelector(".nbs-note");
      if (link && facts) facts.textContent = factsOf(link);
      const chosen = link?.key === state.get("chosen");
      one.toggleAttribute("aria-current", chosen);
      if (chosen) strip.scrollLeft = one.offsetLeft - strip.offsetLeft - (strip.clientWidth - one.clientWidth) / 2;
    }
  };
  const ask = async () => {
    turn += 1;
    const mine = turn;
    draw();
    const missing = chainOf(flow, state.get("chosen"))
      .map(({ key }) => key)
      .filter((key) => flow.about.analyses[placeOf(key).site] && !source.card(key));
    const none = !Object.keys(flow.about.analyses).length;
    status.replaceChildren(
      none
        ? note("Give FlowDashboard(flow, analyses={site: ns.analyze(…)}) to see what these latents are active on.")
        : "",
    );
    if (!missing.length || state.get("kernel") !== "live") return;
    attr(strip, "aria-busy", "true");
    try {
      await source.askCards(missing);
      if (mine === turn) draw();
    } catch (error) {
      if (mine !== turn) return;
      status.replaceChildren(errorCard("The cards of this chain could not be loaded.", error));
      for (const one of strip.querySelectorAll("p")) if (one.textContent === ASKING) one.textContent = "–";
    } finally {
      if (mine === turn) strip.removeAttribute("aria-busy");
    }
  };
  // After the graph has been painted: cards are many pictures.
  let timer: ReturnType<typeof setTimeout> | undefined;
  const stop = state.on(["chosen", "graph", "kernel", "tab"], () => {
    clearTimeout(timer);
    if (state.get("tab") === "cards") timer = setTimeout(() => void ask(), drawn ? LATER_MS : 0);
  });
  return () => {
    turn += 1;
    clearTimeout(timer);
    stop();
    clear();
  };
}

function column(panel: Panel, link: Link, card: Card | undefined, say: Say, stops: (() => void)[]): HTMLElement {
  const { flow, state } = panel;
  const { site } = placeOf(link.key);
  const button = h(
    "button",
    { type: "button", class: "nbs-pick nbs-col-latent", title: "Choose this latent" },
    bdi(flow.title(link.key)),
  );
  listen(button, "click", () => state.set("chosen", link.key));
  const element = h("section", { class: "nbs-link" }, h("b", {}, flow.where(site)), h("div", {}, button), note());
  if (card?.examples.length) {
    const body = h("div", { class: "nbs-examples" });
    element.append(body);
    stops.push(examples(body, panel, link, card, say));
  } else element.append(note(missing(panel, link, card)));
  return element;
}

function factsOf({ node, cosine }: Link): string {
  const kind = node && KINDS[node.kind];
  return [kind, Number.isNaN(cosine) ? "chosen" : `cosine ${sig3(cosine)}`].filter(Boolean).join(" · ");
}

function missing({ flow, state }: Panel, link: Link, card: Card | undefined): string {
  const { site } = placeOf(link.key);
  if (!Object.keys(flow.about.analyses).length) return "";
  if (!flow.about.analyses[site]) return "No analysis was given for this site.";
  if (card) return "Never active on the analysed inputs.";
  return state.get("kernel") === "none" ? "Its card is not inside this saved view; a running kernel shows it." : ASKING;
}

/** The panels of the feature dashboard, which ask for no more than this. */
function examples(body: HTMLElement, { flow }: Panel, link: Link, card: Card, say: Say): () => void {
  const about = flow.about.analyses[placeOf(link.key).site];
  if (!about) return () => {};
  const state = new State({ scale: "card", heat: true, opacity: 0.7, held: false, kernel: "none" } as CardView);
  const own = { about, state } as unknown as CardPanel;
  const draw = about.modality === "text" ? textsPanel : imagesPanel;
  const top = card.examples.filter(({ interval }) => interval < 0);
  const stop = draw(body, own, card, top, say);
  // Small pictures have no room for their names, which their labels hold.
  if (about.modality === "image") for (const key of body.querySelectorAll(".nbs-key")) key.remove();
  return stop;
}
