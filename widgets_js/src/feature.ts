/** The feature dashboard. */

import { h } from "./core/dom";
import { dashboard } from "./core/host";

export default dashboard((model, el) => {
  el.append(h("div", { class: "nbs-feature", "data-lm-suppress-shortcuts": "true" }, `Latent ${model.get("latent")}`));
});
