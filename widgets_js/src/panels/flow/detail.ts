/** The chosen latent: its kind, its scores against their thresholds, where it was born, and its neighbours. */

import { bdi, h, listen } from "../../core/dom";
import { count, sig3, visible } from "../../core/format";
import { badge, note, type Panel } from "./shared";
import { bornText, chainOf, type Edge, KINDS, type Node, type Null, placeOf, pText, ROUTES } from "./tables";

const MEANS: Record<(typeof KINDS)[number], string> = {
  translated: "carried on by the residual stream alone",
  processed: "carried on by the residual stream, and attention or MLP of its block writes it too",
  newborn: "not in the stream before: attention or MLP of its block writes it",
  unexplained: "no predecessor reaches its threshold",
};
const NEIGHBOURS = 6;

export function detailPanel(root: HTMLElement, panel: Panel): () => void {
  const { flow, state } = panel;
  const draw = () => {
    const key = state.get("chosen");
    const { site, latent } = placeOf(key);
    const node = flow.node(key);
    const title = h("h3", {}, node?.name ? bdi(visible(node.name)) : `Latent ${latent}`);
    const place = h("p", { class: "nbs-note" }, `${node?.name ? `latent ${latent}, ` : ""}${flow.where(site)} `);
    place.append(bdi(visible(flow.sites[site]?.name ?? ""), "nbs-site"));
    if (!node) {
      const why =
        state.get("kernel") === "none"
          ? "This latent is not inside the saved view, and no kernel answers: run the notebook again to see it."
          : "Asking the kernel …";
      root.replaceChildren(title, place, h("p", { class: "nbs-message" }, why));
      return;
    }
    const kind = KINDS[node.kind];
    if (kind) title.append(" ", badge(kind));
    root.replaceChildren(title, place);
    if (kind) root.append(note(`${kind}: ${MEANS[kind]}.`));
    root.append(scores(panel, node), born(panel, node));
    const { edges } = state.get("graph");
    root.append(
      ...neighbours(
        panel,
        "Comes from",
        edges.filter((one) => one.target.key === key),
        "source",
      ),
      ...neighbours(
        panel,
        "Goes to",
        edges.filter((one) => one.source.key === key),
        "target",
      ),
    );
  };
  return state.on(["chosen", "graph", "kernel"], draw);
}

function scores({ flow }: Panel, node: Node): HTMLElement {
  const rows = h("div", { class: "nbs-note nbs-scores" });
  const line = (sign: string, text: string, value: number, against: Null | undefined, p: number) => {
    if (Number.isNaN(value)) return;
    const threshold = against?.threshold ?? Number.NaN;
    const reaches = value >= threshold;
    rows.append(
      h("span", { title: text }, sign),
      track(value, against),
      h("b", {}, sig3(value)),
      h("span", {}, `${reaches ? "≥" : "<"} ${sig3(threshold)} ${pText(p)}`),
    );
  };
  for (const { lane, score, sign, text } of ROUTES) {
    const source = flow.sourceOf(node.site, lane);
    line(
      sign,
      `largest cosine with ${text}`,
      node.score[score],
      flow.nullOf(source, node.site),
      node.p[lane] ?? Number.NaN,
    );
  }
  const onward = flow.sites.findIndex(
    (site, place) => (site.lane === 0 || site.lane === 3) && place > node.site && flow.nullOf(node.site, place),
  );
  line(
    "carried",
    "cosine with its best match at the next site",
    node.score.carried,
    flow.nullOf(node.site, onward),
    Number.NaN,
  );
  if (!rows.childElementCount) return note("Nothing lies before or after this site in the flow.");
  return rows;
}

/** A bar from 0 to 1 with a line at the threshold, and the null's mean shaded. Decorative: the numbers stand beside. */
function track(value: number, against: Null | undefined): HTMLElement {
  const share = (one: number) => `${Math.min(1, Math.max(0, one)) * 100}%`;
  const bar = h("i");
  bar.style.width = share(value);
  const track = h("span", { class: "nbs-track", "aria-hidden": "true" }, bar);
  if (!against) return track;
  const chance = h("i", { class: "nbs-chance" });
  chance.style.width = share(Number.isNaN(against.q999) ? against.mean : against.q999);
  const line = h("i", { class: "nbs-cutoff" });
  line.style.left = share(against.threshold);
  track.prepend(chance);
  track.append(line);
  track.title = `shaded: what random directions reach (99.9 %: ${sig3(against.q999)}, mean ${sig3(against.mean)}); line: threshold ${sig3(against.threshold)} (${against.rule}); the paper's: ${sig3(against.paper)}; ${count(against.above)} of ${count(against.targets)} latents reach it`;
  return track;
}

function born({ flow }: Panel, node: Node): HTMLElement {
  const chain = chainOf(flow, node.key);
  const last = chain.at(-1);
  const end = last && last.key !== node.key ? ` Carried on to ${flow.where(placeOf(last.key).site)}.` : "";
  return note(h("b", {}, "Born "), bornText(flow, chain, node), `.${end}`);
}

function neighbours({ flow, state }: Panel, title: string, edges: Edge[], end: "source" | "target"): HTMLElement[] {
  if (!edges.length) return [];
  const list = h("ul");
  const near = [...edges].sort((a, b) => b.cosine - a.cosine).slice(0, NEIGHBOURS);
  for (const edge of near) {
    const other = edge[end];
    const button = h(
      "button",
      { type: "button", class: `nbs-pick ${edge.above ? "" : "nbs-none"}` },
      h("b", {}, sig3(edge.cosine)),
      " ",
      bdi(flow.title(other.key)),
    );
    button.append(` ${flow.where(other.site)}${edge.above ? "" : ", inside the null"}`);
    listen(button, "click", () => state.set("chosen", other.key));
    list.append(h("li", {}, button));
  }
  return [h("h4", {}, title), list];
}
