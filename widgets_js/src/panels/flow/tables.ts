/** The tables of the flow dashboard, with their columns named once. Trait and column names are Python's. */

import { sig3, visible } from "../../core/format";
import type { Table } from "../../core/wire";

export const LANES = ["residual", "attention", "mlp", "embedding"] as const;
export const KINDS = ["translated", "processed", "newborn", "unexplained"] as const;
/** Lanes that a latent can come from, and what the paper calls its score. */
export const ROUTES = [
  { lane: 0, score: "s_residual", p: "p_residual", match: "match_residual", sign: "s(R)", text: "residual stream" },
  { lane: 1, score: "s_attention", p: "p_attention", match: "match_attention", sign: "s(A)", text: "attention" },
  { lane: 2, score: "s_mlp", p: "p_mlp", match: "match_mlp", sign: "s(M)", text: "MLP" },
] as const;
export const SCORES = ["s_residual", "s_attention", "s_mlp", "carried"] as const;
export type Score = (typeof SCORES)[number];

/** What the cards of one site look like. */
export interface SiteAbout {
  modality: "image" | "text";
  pooled: boolean;
  grid: [number, number] | null;
  prefix_tokens: number;
  positions: number;
  rows: number;
}

export interface About {
  title: string;
  rule: string;
  /** Pairs of sites that were not matched, and why. */
  left_out: string[];
  latents: number;
  edges: number;
  /** Latents of a site that a page shows at most. */
  shown: number;
  /** Edges that a page holds at most. */
  most_edges: number;
  saved: { nodes: number; shown: number; cards: number };
  analyses: Record<string, SiteAbout>;
  steer: boolean;
  modes: string[];
  trees: Record<string, { pairs: number; null: number }>;
  /** The site whose tree is saved. */
  tree_site: number;
}

export interface Site {
  name: string;
  layer: number;
  lane: number;
  latents: number;
}

export interface Null {
  threshold: number;
  mean: number;
  q999: number;
  paper: number;
  rule: string;
  above: number;
  targets: number;
}

/** One latent of one site. */
export interface Node {
  key: number;
  site: number;
  latent: number;
  /** Its place in the column, 0 … 1, the same whatever is shown beside it. */
  y: number;
  /** Position in `KINDS`, -1 for none. */
  kind: number;
  /** Sites that its chain passes through. */
  span: number;
  name: string | undefined;
  score: Record<Score, number>;
  /** By lane of the source; -1 for none. */
  match: number[];
  p: number[];
  carried_to: number;
  /** Sites of its neighbours in the chain; -1 for none. */
  before_site: number;
  after_site: number;
}

export interface Edge {
  source: Node;
  target: Node;
  cosine: number;
  p: number;
  above: boolean;
}

export interface Graph {
  nodes: Node[];
  edges: Edge[];
}

const LATENTS = 2 ** 24;

export function keyOf(site: number, latent: number): number {
  return site * LATENTS + latent;
}

export function placeOf(key: number): { site: number; latent: number } {
  return { site: Math.floor(key / LATENTS), latent: key % LATENTS };
}

function must(tables: Record<string, Table>, name: string): Table {
  const table = tables[name];
  if (!table) throw new Error(`The dashboard's state holds no table ${name}. Run the cell again.`);
  return table;
}

/** Sites, thresholds, and every latent that was seen so far. */
export class Flow {
  readonly sites: Site[];
  readonly #nulls = new Map<string, Null>();
  readonly #nodes = new Map<number, Node>();

  constructor(
    tables: Record<string, Table>,
    readonly about: About,
  ) {
    const sites = must(tables, "sites");
    this.sites = (sites.json("site") as string[]).map((name, row) => ({
      name,
      layer: sites.numbers("layer")[row] ?? 0,
      lane: sites.numbers("lane")[row] ?? 0,
      latents: sites.numbers("latents")[row] ?? 0,
    }));
    const nulls = must(tables, "nulls");
    const of = (name: string, row: number) => nulls.numbers(name)[row] ?? Number.NaN;
    for (let row = 0; row < nulls.rows; row += 1) {
      this.#nulls.set(`${of("source", row)} ${of("target", row)}`, {
        threshold: of("threshold", row),
        mean: of("mean", row),
        q999: of("q999", row),
        paper: of("paper", row),
        rule: String(nulls.json("rule")[row]),
        above: of("above", row),
        targets: of("targets", row),
      });
    }
  }

  /** Reads latents and edges, and remembers the latents. */
  read(tables: Record<string, Table>): Graph {
    const nodes = this.nodes(must(tables, "nodes"));
    const edges: Edge[] = [];
    const table = tables.edges;
    for (let row = 0; table && row < table.rows; row += 1) {
      const end = (name: string) => nodes[table.numbers(name)[row] ?? -1];
      const [source, target] = [end("source"), end("target")];
      if (!source || !target) continue;
      edges.push({
        source,
        target,
        cosine: table.numbers("cosine")[row] ?? 0,
        p: table.numbers("p")[row] ?? Number.NaN,
        above: (table.numbers("above")[row] ?? 0) > 0,
      });
    }
    return { nodes, edges };
  }

  nodes(table: Table): Node[] {
    const column = (name: string) => table.numbers(name);
    const names = table.json("name") as (string | null)[];
    const number = (name: string, row: number) => column(name)[row] ?? Number.NaN;
    return Array.from({ length: table.rows }, (_, row) => {
      const [site, latent] = [number("site", row), number("latent", row)];
      const node: Node = {
        key: keyOf(site, latent),
        site,
        latent,
        y: number("y", row),
        kind: number("kind", row),
        span: number("span", row),
        name: names[row] ?? undefined,
        score: Object.fromEntries(SCORES.map((score) => [score, number(score, row)])) as Record<Score, number>,
        match: ROUTES.map(({ match }) => number(match, row)),
        p: ROUTES.map(({ p }) => number(p, row)),
        carried_to: number("carried_to", row),
        before_site: number("before_site", row),
        after_site: number("after_site", row),
      };
      this.#nodes.set(node.key, node);
      return node;
    });
  }

  node(key: number): Node | undefined {
    return this.#nodes.get(key);
  }

  /** Threshold and null of a pair of sites. */
  nullOf(source: number, target: number): Null | undefined {
    return this.#nulls.get(`${source} ${target}`);
  }

  /** The site of a lane that a site is matched with. */
  sourceOf(target: number, lane: number): number {
    return this.sites.findIndex(
      (site, place) => (site.lane === lane || (lane === 0 && site.lane === 3)) && this.#nulls.has(`${place} ${target}`),
    );
  }

  /** A short name of a site for a column: its layer, or "embed". */
  layerText(site: number): string {
    const one = this.sites[site];
    return one?.lane === 3 ? "embed" : String(one?.layer ?? "");
  }

  where(site: number): string {
    const one = this.sites[site];
    if (!one) return "";
    if (one.lane === 3) return "embedding";
    return `layer ${one.layer}${one.lane ? ` ${LANES[one.lane] === "mlp" ? "MLP" : LANES[one.lane]}` : ""}`;
  }

  title(key: number): string {
    const name = this.node(key)?.name;
    return name ? visible(name) : `#${placeOf(key).latent}`;
  }
}

/** One latent of a chain; a node that was not loaded is known by its key alone. */
export interface Link {
  key: number;
  node: Node | undefined;
  /** To its neighbour on the side of the chosen latent; NaN for the chosen one. */
  cosine: number;
}

/** Where the chain leads from a node, by one step; undefined at its end. */
export function neighbour(flow: Flow, node: Node, forwards: boolean): { key: number; cosine: number } | undefined {
  if (forwards) {
    if (node.after_site < 0) return undefined;
    return { key: keyOf(node.after_site, node.carried_to), cosine: node.score.carried };
  }
  if (node.before_site < 0) return undefined;
  const lane = flow.sites[node.before_site]?.lane ?? 0;
  const route = ROUTES[lane === 3 ? 0 : lane];
  if (!route) return undefined;
  return { key: keyOf(node.before_site, node.match[route.lane] ?? 0), cosine: node.score[route.score] };
}

/** The chain through a latent, earliest first. It ends early where the next latent was not loaded. */
export function chainOf(flow: Flow, key: number): Link[] {
  const walk = (forwards: boolean) => {
    const links: Link[] = [];
    let node = flow.node(key);
    while (node) {
      const next = neighbour(flow, node, forwards);
      if (!next) break;
      node = flow.node(next.key);
      links.push({ ...next, node });
    }
    return links;
  };
  return [...walk(false).reverse(), { key, node: flow.node(key), cosine: Number.NaN }, ...walk(true)];
}

/** Where a latent was born, in words: back along the residual stream for as long as the thresholds are reached. */
export function bornText(flow: Flow, chain: Link[], node: Node): string {
  const isModule = (key: number) => [1, 2].includes(flow.sites[placeOf(key).site]?.lane ?? 0);
  const said = (key: number) => `${flow.where(placeOf(key).site)}, latent ${placeOf(key).latent}`;
  let at = chain.findIndex(({ key }) => key === node.key);
  if (isModule(node.key)) return `at ${said(node.key)}: it is what this block adds`;
  while (at > 0 && !isModule(chain[at - 1]?.key ?? 0)) at -= 1;
  const [link, before] = [chain[at], chain[at - 1]];
  if (!link) return "";
  if (before) return `at ${said(link.key)}, written by ${said(before.key)} (cosine ${sig3(before.cosine)})`;
  if (!link.node) return `at or before ${said(link.key)}, whose own line is not inside this view`;
  const { site } = link.node;
  const earlier = flow.sites.some((_, place) => flow.nullOf(place, site));
  return earlier
    ? `at ${said(link.key)}; nothing before it reaches its threshold`
    : `at or before ${said(link.key)}, the first site`;
}

/** A p-value; what is too small to matter is said to be small. */
export function pText(p: number): string {
  return Number.isNaN(p) ? "" : p < 1e-6 ? "p < 1e−6" : `p = ${sig3(p)}`;
}
