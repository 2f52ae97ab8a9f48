/** The graph as a table: every shown latent in a list, and its edges as a file. */

import { h, listen } from "../../core/dom";
import { csv, save } from "../../core/download";
import { count, sig3 } from "../../core/format";
import { VirtualList } from "../../core/list";
import { described } from "./marks";
import { note, type Panel, shown } from "./shared";
import { KINDS, type Node, SCORES } from "./tables";

const ROW_HEIGHT = 28;

export function tablePanel(root: HTMLElement, panel: Panel): () => void {
  const { flow, state } = panel;
  let nodes: Node[] = [];
  const list = new VirtualList({
    label: "Shown latents",
    rowHeight: ROW_HEIGHT,
    draw: (row, index) => nodes[index] && drawRow(row, panel, nodes[index]),
    choose: (index) => nodes[index] && state.set("chosen", nodes[index].key),
  });
  const said = note();
  const button = h("button", { type: "button", class: "nbs-button" }, "Save edges as CSV");
  listen(button, "click", () => save("flow-edges.csv", edges(panel)));
  const head = h("div", { class: "nbs-head", "aria-hidden": "true" });
  for (const text of ["Layer", "Latent", "Kind", "s(R)", "s(A)", "s(M)", "carried"]) head.append(h("span", {}, text));
  root.append(h("div", { class: "nbs-line" }, said, button), head, list.element);
  root.style.setProperty("--columns", "2fr 2fr 2fr 1fr 1fr 1fr 1fr");
  list.element.style.minHeight = "160px";
  const at = () => nodes.findIndex(({ key }) => key === state.get("chosen"));
  const stops = [
    state.on(["graph", "lanes", "kind", "score", "least", "chosen", "tab"], () => {
      if (state.get("tab") !== "table") return;
      nodes = shown(panel).nodes.sort((a, b) => a.site - b.site || a.y - b.y);
      list.reset(nodes.length, at());
      const edges = state.get("graph").edges.length;
      const cut = edges >= flow.about.most_edges ? `; of the edges among them, the ${count(edges)} nearest` : "";
      said.textContent = `${count(nodes.length)} of ${count(flow.about.latents)} latents are shown${cut}.`;
    }),
  ];
  return () => {
    for (const stop of stops) stop();
    list.dispose();
  };
}

function drawRow(row: HTMLElement, { flow }: Panel, node: Node): void {
  row.title = described(flow, node).join(", ");
  const cells = [flow.where(node.site), flow.title(node.key), KINDS[node.kind] ?? ""];
  for (const score of SCORES) cells.push(Number.isNaN(node.score[score]) ? "" : sig3(node.score[score]));
  for (const text of cells) row.append(h("span", { class: "nbs-key" }, text));
}

function edges({ flow, state }: Panel): string {
  const site = (node: Node) => flow.sites[node.site]?.name ?? "";
  return csv(
    ["source_site", "source_latent", "target_site", "target_latent", "cosine", "p", "above"],
    state
      .get("graph")
      .edges.map(({ source, target, cosine, p, above }) => [
        site(source),
        source.latent,
        site(target),
        target.latent,
        cosine,
        p,
        Number(above),
      ]),
  );
}
