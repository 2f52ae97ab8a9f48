/** One picture with a line under it. */

import { bdi, h } from "../../core/dom";
import { visible } from "../../core/format";

/** Whole names: the build keeps the rules for classes that a script names. */
const CLASSES = { new: "nbs-new", lost: "nbs-lost" };

export interface Tile {
  key: string;
  url: string | undefined;
  /** The number under the picture, and what it is. */
  caption: string;
  said: string;
  /** A word that is not only colour: "new", "lost". */
  mark?: keyof typeof CLASSES | undefined;
}

export function tile({ key, url, caption, said, mark }: Tile): HTMLElement {
  const name = visible(key);
  const picture = h("div", { class: "nbs-picture" });
  picture.append(
    url
      ? h("img", { src: url, alt: "", decoding: "async", draggable: "false" })
      : h("span", { class: "nbs-nopicture" }, "no picture"),
  );
  return h(
    "div",
    {
      class: `nbs-tile ${mark ? CLASSES[mark] : ""}`,
      role: "img",
      "aria-label": `${name}, ${said} ${caption}${mark ? `, ${mark}` : ""}`,
      title: name,
    },
    picture,
    h("div", { class: "nbs-caption" }, h("b", {}, caption), mark ? h("span", {}, mark) : bdi(name, "nbs-key")),
  );
}
