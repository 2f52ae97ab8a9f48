// Mounts a dashboard's built script on a model made from a saved state, as a notebook does, and knows what is left behind.
//
// window.nbsae.mount(saved, kernel) puts one view into the page; saved is {state, paths, buffers, script, css}.
// kernel is how the other side behaves:
//   none      the host says at once that there is none (our report page)
//   absent    nobody says so, and nobody answers (a notebook that was reopened)
//   live      window.kernel answers
//   held      only a ping is answered until nbsae.release() is called (a cell is running)
//   refusing  everything but a ping is answered with an error

(() => {
  const views = [];
  const observed = new Set();
  const contexts = [];
  const urls = new Set();
  let media = 0;

  // What a page cannot tell of itself: observers, media queries, drawing contexts and addresses of blobs.
  for (const name of ["ResizeObserver", "IntersectionObserver", "MutationObserver", "PerformanceObserver"]) {
    const Own = window[name];
    window[name] = class extends Own {
      observe(...what) {
        observed.add(this);
        super.observe(...what);
      }
      disconnect() {
        observed.delete(this);
        super.disconnect();
      }
    };
  }
  const lists = MediaQueryList.prototype;
  for (const [name, by] of [["addEventListener", 1], ["removeEventListener", -1]]) {
    const own = lists[name];
    lists[name] = function (...what) {
      media += by;
      return own.apply(this, what);
    };
  }
  const getContext = HTMLCanvasElement.prototype.getContext;
  HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
    const context = getContext.call(this, kind, ...rest);
    if (context && kind.startsWith("webgl") && !contexts.some((one) => one.deref() === context)) {
      contexts.push(new WeakRef(context));
    }
    return context;
  };
  const { createObjectURL, revokeObjectURL } = URL;
  URL.createObjectURL = (blob) => {
    const url = createObjectURL.call(URL, blob);
    urls.add(url);
    return url;
  };
  URL.revokeObjectURL = (url) => {
    urls.delete(url);
    revokeObjectURL.call(URL, url);
  };

  const bytes = (text) => new DataView(Uint8Array.fromBase64(text).buffer);

  /** The buffers of a saved state, decoded once: what reading them costs is the host's matter. */
  const decoded = new WeakMap();
  const buffersOf = (saved) => {
    if (!decoded.has(saved)) decoded.set(saved, saved.buffers.map(bytes));
    return decoded.get(saved);
  };

  /** The model that a host makes of a saved state; buffers become DataViews. */
  class Model {
    listeners = new Map();
    held = [];
    constructor(saved, kernel) {
      this.state = structuredClone(saved.state);
      this.kernel = kernel;
      const buffers = buffersOf(saved);
      saved.paths.forEach((path, number) => {
        const at = path.slice(0, -1).reduce((inner, step) => inner[step], this.state);
        at[path.at(-1)] = buffers[number];
      });
    }
    get = (name) => this.state[name];
    set = (name, value) => {
      const changes = typeof name === "string" ? { [name]: value } : name;
      for (const [one, next] of Object.entries(changes)) {
        if (Object.is(this.state[one], next)) continue;
        this.state[one] = next;
        this.emit(`change:${one}`, this, next);
      }
    };
    save_changes = () => {};
    on = (name, one) => this.listeners.set(name, (this.listeners.get(name) ?? new Set()).add(one));
    off = (name, one) => (one ? this.listeners.get(name)?.delete(one) : this.listeners.delete(name));
    emit = (name, ...what) => {
      for (const one of [...(this.listeners.get(name) ?? [])]) one(...what);
    };
    send = (content) => {
      if (this.kernel === "live") return void this.ask(content);
      if (this.kernel === "none" || this.kernel === "absent") return;
      if (content.kind === "ping") return void setTimeout(() => this.emit("msg:custom", { id: content.id, ok: true }, []));
      if (this.kernel === "held") return void this.held.push(content);
      const error = { cause: "Out of memory, as planted.", fix: "Use fewer rows.", details: "Traceback: planted" };
      setTimeout(() => this.emit("msg:custom", { id: content.id, ok: false, error }, []));
    };
    ask = async (content) => {
      const { content: answer, buffers } = JSON.parse(await window.kernel(JSON.stringify(content)));
      this.emit("msg:custom", answer, buffers.map(bytes));
      window.nbsae.answered += content.kind === "ping" ? 0 : 1;
    };
  }

  const modules = new Map();
  const moduleOf = async (script) => {
    const url = createObjectURL.call(URL, new Blob([script], { type: "text/javascript" }));
    if (!modules.has(script)) modules.set(script, (await import(url)).default);
    return modules.get(script);
  };

  window.nbsae = {
    /** Answers that have arrived, pings left out. */
    answered: 0,
    frame: () => new Promise((done) => requestAnimationFrame(done)),
    async frames(number = 2) {
      for (let one = 0; one < number; one += 1) await window.nbsae.frame();
    },
    style(css) {
      const style = document.createElement("style");
      style.textContent = css;
      document.head.append(style);
    },
    /**
     * Milliseconds that `render` itself took. An old host (anywidget before 0.11) gives neither a signal nor itself.
     */
    async mount(saved, kernel = "none", old = false) {
      const hooks = await moduleOf(saved.script);
      const model = new Model(saved, kernel);
      const el = document.createElement("div");
      document.getElementById("root").append(el);
      const controller = new AbortController();
      const host = kernel === "none" ? { kernel: false } : {};
      const started = performance.now();
      const args = old ? { model } : { model, signal: controller.signal, host };
      const initialized = await hooks.initialize?.(args);
      const close = await hooks.render({ ...args, el });
      const took = performance.now() - started;
      views.push({ model, el, controller, close, initialized });
      return took;
    },
    /** Read the buffers of a saved state now, as a host has done when it calls a script. */
    ready: (saved) => void buffersOf(saved),
    /** Milliseconds until a view is on the screen, its script included. */
    async firstPaint(saved, kernel = "none") {
      const started = performance.now();
      await window.nbsae.mount(saved, kernel);
      await window.nbsae.frames();
      return performance.now() - started;
    },
    /** End the newest view the way a host does: its signal, then the function that `render` gave. */
    unmount() {
      const view = views.pop();
      view.controller.abort();
      view.close?.();
      if (typeof view.initialized === "function") view.initialized();
      view.el.remove();
      window.nbsae.kept = [...view.model.listeners.values()].reduce((sum, one) => sum + one.size, 0);
    },
    release(kernel = "live") {
      const { model } = views.at(-1);
      model.kernel = kernel;
      model.held.splice(0).forEach((content) => void model.send(content));
    },
    set: (name, value) => views.at(-1).model.set(name, value),
    /** A message of the kernel that nobody asked for. */
    tell: (content, buffers = []) => views.at(-1).model.emit("msg:custom", content, buffers),
    /** What exists now and would be left behind by a view that is gone. */
    left: () => ({
      model: window.nbsae.kept ?? 0,
      observers: observed.size,
      media,
      contexts: contexts.filter((one) => one.deref() && !one.deref().isContextLost()).length,
      urls: urls.size,
      styles: document.head.querySelectorAll("style").length,
      body: document.body.children.length,
    }),
    async cycles(saved, number, kernel) {
      for (let one = 0; one < number; one += 1) {
        await window.nbsae.mount(saved, kernel);
        await window.nbsae.frame();
        window.nbsae.unmount();
      }
    },
  };
})();
