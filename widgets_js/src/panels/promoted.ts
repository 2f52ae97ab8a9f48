/** Tokens that a latent promotes and suppresses, on its write side and on its read side. */

import { bdi, h, listen } from "../core/dom";
import { sig3, visible } from "../core/format";
import type { Readout } from "./shared";
import type { Card, Promoted } from "./tables";

const LISTS: { side: Promoted["side"]; suppressed: boolean; title: string; said: string }[] = [
  { side: "write", suppressed: false, title: "Writes for", said: "promoted" },
  { side: "write", suppressed: true, title: "Writes against", said: "suppressed" },
  { side: "read", suppressed: false, title: "Reads", said: "excites it" },
  { side: "read", suppressed: true, title: "Reads against", said: "inhibits it" },
];
const SIDES = {
  write: "write side, decoder row through the unembedding",
  read: "read side, encoder column against the unembedding",
};
/** Tokens with a larger p get no colour. */
const CHANCE = 0.05;
/** Blue for, orange against: told apart with any colour vision, and by the sign of the number beside. */
export const FOR = "light-dark(#8db8ff,#1d4f9c)";
export const AGAINST = "light-dark(#ffb01f,#a35a00)";

/** Draws nothing for a card without promoted tokens. */
export function promotedPanel(root: HTMLElement, card: Card, readout: Readout): void {
  if (!card.promoted.length) return;
  const largest = { write: 0, read: 0 };
  for (const { side, logit } of card.promoted) largest[side] = Math.max(largest[side], Math.abs(logit));
  const lists = h("div");
  lists.style.cssText = "display:grid;grid-template-columns:repeat(auto-fit,minmax(136px,1fr));gap:8px 26px";
  for (const { side, suppressed, title, said } of LISTS) {
    const found = card.promoted.filter((one) => one.side === side && one.suppressed === suppressed);
    if (!found.length) continue;
    const list = h("div", { role: "list", "aria-label": `${title}: ${said}, ${SIDES[side]}` });
    for (const one of found) list.append(line(one, largest[side], said, readout));
    lists.append(h("div", {}, h("span", { class: "nbs-cut", title: SIDES[side] }, `${title} (${said})`), list));
  }
  const note = `Logits per unit of activation. Writes: the decoder row through the unembedding. Reads: the encoder column against it. No colour: a random direction has as good tokens (p > ${CHANCE}).`;
  root.append(
    h(
      "section",
      { class: "nbs-section" },
      h("h4", {}, "Promoted and suppressed tokens"),
      h("p", { class: "nbs-note" }, note),
      lists,
    ),
  );
}

function line(one: Promoted, largest: number, said: string, readout: Readout): HTMLElement {
  const token = visible(one.token);
  const shown = bdi(token || " ", "nbs-key");
  shown.style.cssText = "white-space:pre;color:inherit";
  const number = h("span", {}, sig3(one.logit));
  const row = h("div", { class: "nbs-caption", role: "listitem", title: `“${token}”, token id ${one.token_id}` });
  const share = Math.round((Math.abs(one.logit) / (largest || 1)) * 100);
  const colour = one.p > CHANCE ? "transparent" : one.suppressed ? AGAINST : FOR;
  row.style.cssText = `padding:0 4px;background:linear-gradient(to right,${colour} ${share}%,transparent ${share}%)`;
  row.append(h("code", {}, shown), number);
  listen(row, "pointerenter", () =>
    readout([
      `${sig3(one.logit)} logits per unit`,
      `“${token}”`,
      `token id ${one.token_id}`,
      `${said}, ${one.side} side`,
    ]),
  );
  return row;
}
