/** Matryoshka levels as a tree: parents and the children that are active where they are, against chance. */

import { attr, h, listen } from "../../core/dom";
import { errorCard } from "../../core/errors";
import { count, percent, sig3 } from "../../core/format";
import { note, type Pair, type Panel } from "./shared";
import { keyOf, placeOf } from "./tables";

const ROOTS = 40;
const DEEP = 12;

/** The pairs of a site as a tree. Each child hangs on one parent, as in `LevelTree.tree`. */
interface Family {
  parents: Map<number, Pair>;
  children: Map<number, Pair[]>;
  /** Latents without a parent, those with most children first. */
  top: number[];
}

export function treePanel(root: HTMLElement, panel: Panel): () => void {
  const { flow, source, state } = panel;
  let turn = 0;
  let open = new Set<string>();
  let site = -1;
  /** The latent whose path was opened; the reader may close it. */
  let shown = -1;

  const draw = (pairs: Pair[], whole: boolean) => {
    const { latent } = placeOf(state.get("chosen"));
    const family = familyOf(pairs);
    const path = pathTo(family, latent);
    if (latent !== shown) path.forEach((_, depth) => void open.add(path.slice(0, depth + 1).join("/")));
    shown = latent;
    const list = h("ul", { role: "tree", "aria-label": "Levels" });
    const first = Number(path[0]);
    const top = family.top.includes(first) ? [first, ...family.top.filter((one) => one !== first)] : family.top;
    for (const one of top.slice(0, ROOTS)) list.append(branch(panel, family, open, one, ""));
    root.replaceChildren(...words(panel, family, pairs, whole), list);
    const stop = list.querySelector<HTMLElement>('[aria-selected="true"]') ?? list.querySelector<HTMLElement>("li");
    if (stop) stop.tabIndex = 0;
    attend(list, panel, (item, wanted) => {
      const key = item.dataset.key ?? "";
      if (wanted ?? !open.has(key)) open.add(key);
      else open.delete(key);
      draw(pairs, whole);
      root.querySelector<HTMLElement>(`[data-key="${key}"]`)?.focus();
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
      const none = "No tree was given: FlowDashboard(flow, …, tree={site: ns.level_tree(…)}).";
      root.replaceChildren(
        note(others.length ? `There is no tree of this site; there is one of ${others.join(", ")}.` : none),
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

function familyOf(pairs: Pair[]): Family {
  const parents = new Map<number, Pair>();
  for (const pair of pairs) if (nearer(pair, parents.get(pair.child))) parents.set(pair.child, pair);
  const children = new Map<number, Pair[]>();
  for (const pair of parents.values()) children.set(pair.parent, [...(children.get(pair.parent) ?? []), pair]);
  const size = (one: number) => children.get(one)?.length ?? 0;
  const top = [...children.keys()].filter((one) => !parents.has(one));
  return { parents, children, top: top.sort((a, b) => size(b) - size(a) || a - b) };
}

/** Whether the parent of `pair` is a better one: of the nearer level, then active with the child more often. */
function nearer(pair: Pair, than: Pair | undefined): boolean {
  if (!than) return true;
  const by = pair.parent_level - than.parent_level || pair.conditional - than.conditional || pair.lift - than.lift;
  return by > 0;
}

/** From the root to a latent. */
function pathTo({ parents }: Family, latent: number): number[] {
  const path = [latent];
  for (let one = parents.get(latent); one && path.length < DEEP; one = parents.get(one.parent))
    path.unshift(one.parent);
  return path;
}

/** What was found, against chance; and what the tree cannot show of the chosen latent. */
function words({ flow, state }: Panel, { parents, children }: Family, pairs: Pair[], whole: boolean): HTMLElement[] {
  const { site, latent } = placeOf(state.get("chosen"));
  const about = flow.about.trees[site] ?? { pairs: 0, null: -1 };
  const by = about.null >= 0 ? `; the same search on shuffled activity finds ${count(about.null)}` : "";
  const rest = whole ? "" : `; ${count(pairs.length)} of them are in this view, the family of this latent first`;
  const said = [note(`${count(about.pairs)} parent–child pairs at ${flow.where(site)}${by}${rest}.`)];
  if (!parents.has(latent) && !children.has(latent)) {
    said.push(note(`Latent ${latent} has neither parent nor child here.`));
  }
  const others = pairs.filter((pair) => pair.child === latent && pair !== parents.get(latent));
  const also = others.map((pair) => `${flow.title(keyOf(site, pair.parent))} (${facts(pair).join(", ")})`);
  if (also.length) said.push(note(`Also a child of ${also.join("; ")}.`));
  return said;
}

/** One latent and, where it is open, its children. `above` is the key of its parent. */
function branch(panel: Panel, family: Family, open: Set<string>, one: number, above: string): HTMLElement {
  const { site, latent } = placeOf(panel.state.get("chosen"));
  const key = above ? `${above}/${one}` : String(one);
  const own = key.split("/").length > DEEP ? [] : (family.children.get(one) ?? []);
  const item = h("li", { role: "treeitem", "aria-selected": String(one === latent), tabindex: -1, "data-key": key });
  item.dataset.latent = String(one);
  const sign = own.length ? (open.has(key) ? "▾ " : "▸ ") : "· ";
  const name = h("b", { class: one === latent ? "nbs-name" : "" }, panel.flow.title(keyOf(site, one)));
  const pair = family.parents.get(one);
  const said = pair ? [`level ${pair.child_level}`, ...facts(pair)] : [];
  if (own.length) said.push(`${count(own.length)} ${own.length === 1 ? "child" : "children"}`);
  item.append(h("span", {}, h("i", { "aria-hidden": "true" }, sign), name, ` ${said.join(" · ")}`));
  if (!own.length) return item;
  attr(item, "aria-expanded", open.has(key));
  if (!open.has(key)) return item;
  const group = h("ul", { role: "group" });
  for (const next of own) group.append(branch(panel, family, open, next.child, key));
  item.append(group);
  return item;
}

/** How often the child is active where the parent is, and what chance gives. */
function facts({ conditional, base_rate, lift, q_value }: Pair): string[] {
  const q = q_value < 1e-30 ? "< 1e−30" : sig3(q_value);
  return [`active with it ${percent(conditional)}, by chance ${percent(base_rate)}`, `lift ${sig3(lift)}`, `q ${q}`];
}

/** Clicks and keys: the sign opens and closes, the rest of a line chooses. */
function attend(list: HTMLElement, { state }: Panel, toggle: (item: HTMLElement, wanted?: boolean) => void): void {
  const itemOf = (event: Event) => (event.target as Element).closest<HTMLElement>("[role=treeitem]");
  const { site } = placeOf(state.get("chosen"));
  const choose = (item: HTMLElement) => state.set("chosen", keyOf(site, Number(item.dataset.latent)));
  listen(list, "click", (event) => {
    const item = itemOf(event);
    if (!item) return;
    if ((event.target as Element).tagName === "I") toggle(item);
    else choose(item);
  });
  listen(list, "keydown", (event) => {
    const item = itemOf(event);
    if (!item || event.ctrlKey || event.metaKey || event.altKey) return;
    const all = [...list.querySelectorAll<HTMLElement>("[role=treeitem]")];
    const at = all.indexOf(item);
    const expanded = item.getAttribute("aria-expanded");
    const parent = item.parentElement?.closest<HTMLElement>("[role=treeitem]");
    const moves: Record<string, () => void> = {
      ArrowDown: () => all[at + 1]?.focus(),
      ArrowUp: () => all[at - 1]?.focus(),
      ArrowRight: () => (expanded === "false" ? toggle(item, true) : undefined),
      ArrowLeft: () => (expanded === "true" ? toggle(item, false) : parent?.focus()),
      Enter: () => choose(item),
      " ": () => choose(item),
    };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    event.stopPropagation();
    move();
  });
}
