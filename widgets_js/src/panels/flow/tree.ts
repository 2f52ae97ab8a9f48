/** Matryoshka levels as a tree: parents and the children that are active where they are, against chance. */

import { h } from "../../core/dom";
import { errorCard } from "../../core/errors";
import { count, percent, sig3 } from "../../core/format";
import { note, type Pair, type Panel } from "./shared";
import { keyOf, placeOf } from "./tables";

const ROOTS = 40;

export function treePanel(root: HTMLElement, panel: Panel): () => void {
  const { flow, source, state } = panel;
  let turn = 0;
  let open = new Set<string>();
  let site = -1;
  /** The latent whose path was opened; the reader may close it. */
  let shown = -1;

  const draw = (pairs: Pair[], whole: boolean) => {
    const { site: at, latent } = placeOf(state.get("chosen"));
    const about = flow.about.trees[at];
    const children = new Map<number, Pair[]>();
    const parents = new Map<number, Pair[]>();
    for (const pair of pairs) {
      children.set(pair.parent, [...(children.get(pair.parent) ?? []), pair]);
      parents.set(pair.child, [...(parents.get(pair.child) ?? []), pair]);
    }
    // The path to the chosen latent is open.
    const path = [String(latent)];
    for (let one = parents.get(latent)?.[0]; one && path.length < 12; one = parents.get(one.parent)?.[0]) {
      path.unshift(String(one.parent));
    }
    if (latent !== shown)
      for (let depth = 1; depth <= path.length; depth += 1) open.add(path.slice(0, depth).join("/"));
    shown = latent;
    const top = [...children.keys()].filter((one) => !parents.has(one));
    const first = Number(path[0]);
    const size = (one: number) => (children.get(one)?.length ?? 0) + (one === first ? 1e6 : 0);
    top.sort((a, b) => size(b) - size(a) || a - b);
    const list = h("ul", { role: "tree", "aria-label": "Levels" });
    const branch = (one: number, parent: string, pair?: Pair): HTMLElement => {
      const key = parent ? `${parent}/${one}` : String(one);
      const own = parent.split("/").includes(String(one)) ? [] : (children.get(one) ?? []);
      const item = h("li", {
        role: "treeitem",
        "aria-selected": String(one === latent),
        tabindex: -1,
        "data-key": key,
      });
      item.dataset.latent = String(one);
      const sign = own.length ? (open.has(key) ? "▾ " : "▸ ") : "· ";
      item.append(h("span", {}, h("i", { "aria-hidden": "true" }, sign), line(panel, at, one, own.length, pair)));
      if (!own.length) return item;
      item.setAttribute("aria-expanded", String(open.has(key)));
      if (open.has(key)) {
        const group = h("ul", { role: "group" });
        for (const next of own) group.append(branch(next.child, key, next));
        item.append(group);
      }
      return item;
    };
    for (const one of top.slice(0, ROOTS)) list.append(branch(one, ""));
    const words =
      `${count(about?.pairs ?? 0)} parent–child pairs at ${flow.where(at)}` +
      (about && about.null >= 0 ? `; the same search on shuffled activity finds ${count(about.null)}` : "") +
      (whole ? "." : `; ${count(pairs.length)} of them are in this view, the family of this latent first.`);
    const known = parents.has(latent) || children.has(latent);
    root.replaceChildren(note(words), ...(known ? [] : [note(`Latent ${latent} has neither parent nor child here.`)]));
    root.append(list);
    const [start] = list.querySelectorAll<HTMLElement>('[aria-selected="true"]');
    const stop = start ?? list.querySelector<HTMLElement>("li");
    if (stop) stop.tabIndex = 0;
    const toggle = (item: HTMLElement, wanted?: boolean) => {
      const key = item.dataset.key ?? "";
      if (wanted ?? !open.has(key)) open.add(key);
      else open.delete(key);
      draw(pairs, whole);
      root.querySelector<HTMLElement>(`[data-key="${key}"]`)?.focus();
    };
    const choose = (item: HTMLElement) => state.set("chosen", keyOf(at, Number(item.dataset.latent)));
    list.addEventListener("click", (event) => {
      const item = (event.target as Element).closest<HTMLElement>("[role=treeitem]");
      if (!item) return;
      if ((event.target as Element).tagName === "I") toggle(item);
      else choose(item);
    });
    list.addEventListener("keydown", (event) => {
      const item = (event.target as Element).closest<HTMLElement>("[role=treeitem]");
      if (!item || event.ctrlKey || event.metaKey || event.altKey) return;
      const all = [...list.querySelectorAll<HTMLElement>("[role=treeitem]")];
      const at = all.indexOf(item);
      const moves: Record<string, () => void> = {
        ArrowDown: () => all[at + 1]?.focus(),
        ArrowUp: () => all[at - 1]?.focus(),
        ArrowRight: () => item.getAttribute("aria-expanded") === "false" && toggle(item, true),
        ArrowLeft: () =>
          item.getAttribute("aria-expanded") === "true"
            ? toggle(item, false)
            : item.parentElement?.closest<HTMLElement>("[role=treeitem]")?.focus(),
        Enter: () => choose(item),
        " ": () => choose(item),
      };
      const move = moves[event.key];
      if (!move) return;
      event.preventDefault();
      event.stopPropagation();
      move();
    });
  };

  const show = async () => {
    turn += 1;
    const mine = turn;
    const key = state.get("chosen");
    const at = placeOf(key).site;
    if (at !== site) [open, site, shown] = [new Set(), at, -1];
    if (!flow.about.trees[at]) {
      const others = Object.keys(flow.about.trees).map((one) => flow.where(Number(one)));
      root.replaceChildren(
        note(
          others.length
            ? `There is no tree of this site; there is one of ${others.join(", ")}.`
            : "No tree was given: FlowDashboard(flow, …, tree={site: ns.level_tree(…)}).",
        ),
      );
      return;
    }
    try {
      const { pairs, whole } = await source.tree(key);
      if (mine === turn) draw(pairs, whole);
    } catch (error) {
      if (mine === turn) root.replaceChildren(errorCard("The tree could not be loaded.", error));
    }
  };
  const stop = state.on(["chosen", "kernel", "tab"], () => state.get("tab") === "tree" && void show());
  return () => {
    turn += 1;
    stop();
  };
}

function line(panel: Panel, site: number, latent: number, children: number, pair: Pair | undefined): HTMLElement {
  const { flow, state } = panel;
  const key = keyOf(site, latent);
  const words: string[] = [];
  if (pair) {
    words.push(`level ${pair.child_level}`);
    words.push(`active with it ${percent(pair.conditional)}, by chance ${percent(pair.base_rate)}`);
    words.push(`lift ${sig3(pair.lift)}`, `q ${pair.q_value < 1e-30 ? "< 1e−30" : sig3(pair.q_value)}`);
  }
  if (children) words.push(`${count(children)} ${children === 1 ? "child" : "children"}`);
  const element = h(
    "span",
    {},
    h("b", { class: key === state.get("chosen") ? "nbs-name" : "" }, flow.title(key)),
    ` ${words.join(" · ")}`,
  );
  return element;
}
