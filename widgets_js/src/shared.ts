/**
 * The small script of a dashboard whose own script is kept once per notebook (`nb_sae/widgets/runtime.py`).
 *
 * The own script is in the page already, or `host.getWidget` gives it, or the kernel does when asked. A host that gives
 * it late is still in time; while nobody has it, the static picture stays and, after a while, a line says why.
 */

import type { AnyModel, Disposer, RenderArgs } from "./core/life";
import { type Runtime, runtimes } from "./core/runtimes";

/** The kernel is asked where the page has not given the script by now. */
const ASK_MS = 1_000;
const EXPLAIN_MS = 10_000;
const MISSING =
  "Only the picture of this dashboard can be shown: its script is kept once per notebook (ns.share_scripts), and " +
  "neither this page nor a kernel gives it. Run the notebook again.";

type Host = { getWidget?(reference: unknown): Promise<{ exports?: unknown }> } & RenderArgs["host"];

async function imported(script: string, sheet: string): Promise<Runtime> {
  const url = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
  try {
    return { ...((await import(url)) as { default: Runtime }).default, sheet };
  } finally {
    URL.revokeObjectURL(url);
  }
}

/** Settles with the first that finds it; never, where nobody does. */
function find(model: AnyModel, host: Host | undefined, signal: AbortSignal): Promise<Runtime> {
  const reference = String(model.get("runtime"));
  const key = reference.replace("anywidget:", "");
  return new Promise((resolve) => {
    const { known, changed } = runtimes();
    const look = () => known.has(key) && resolve(known.get(key) as Runtime);
    changed.addEventListener("change", look, { signal });
    look();
    const isRuntime = (found: unknown): found is Runtime => typeof (found as Runtime)?.render === "function";
    const take = ({ exports }: { exports?: unknown }) => isRuntime(exports) && resolve(exports);
    host?.getWidget?.(reference).then(take, () => {});
    if (host?.kernel === false) return;
    const id = Math.random();
    const answer = ({ id: of, script, sheet }: Record<string, unknown>) => {
      if (of === id && typeof script === "string") imported(script, String(sheet)).then(resolve, () => {});
    };
    const onMessage = answer as (...args: never[]) => void;
    model.on("msg:custom", onMessage);
    const timer = setTimeout(() => known.has(key) || model.send({ id, kind: "script" }), ASK_MS);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      model.off("msg:custom", onMessage);
    });
  });
}

/** The style of a kind of dashboard, once per page or shadow root. */
function paint(el: HTMLElement, key: string, sheet: string): void {
  const root = el.getRootNode();
  const place = root instanceof ShadowRoot ? root : document.head;
  if (place.querySelector(`style[data-nbsae-sheet="${CSS.escape(key)}"]`)) return;
  const style = document.createElement("style");
  style.dataset.nbsaeSheet = key;
  style.textContent = sheet;
  place.append(style);
}

export default {
  async render({ model, el, signal, host }: RenderArgs): Promise<Disposer> {
    const own = new AbortController();
    let close: Disposer | undefined;
    const stop = () => {
      own.abort();
      close?.();
    };
    signal?.addEventListener("abort", stop, { once: true });
    const line = document.createElement("p");
    line.setAttribute("role", "note");
    line.textContent = MISSING;
    const found = find(model, host, own.signal).then((runtime) => {
      if (own.signal.aborted) return;
      clearTimeout(timer);
      line.remove();
      paint(el, String(model.get("runtime")), runtime.sheet);
      close = runtime.render({ model, el, signal: own.signal, host });
    });
    // A page without a kernel is done with the view when this settles, and keeps the picture of one that fails.
    const alone = host?.kernel === false;
    const timer = setTimeout(() => !alone && el.append(line), EXPLAIN_MS);
    own.signal.addEventListener("abort", () => clearTimeout(timer));
    if (alone) {
      await Promise.race([found, new Promise((resolve) => setTimeout(resolve, ASK_MS))]);
      if (!close) throw new Error(MISSING);
    }
    return stop;
  },
};
