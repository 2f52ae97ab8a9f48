// Browsers refuse workers to pages opened from a folder. There the search runs in a hidden frame instead.
if (location.protocol === "file:") {
  globalThis.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.inside = frame.contentWindow;
      // What the script sends to its page comes here, not to the frame itself.
      this.inside.postMessage = (data) => this.answer(data);
      const script = this.inside.document.createElement("script");
      script.src = new URL(url, location).href;
      script.addEventListener("load", () => {
        this.ready = true;
        for (const data of this.waiting.splice(0)) this.postMessage(data);
      });
      this.inside.document.body.append(script);
    }

    answer(data) {
      const event = new MessageEvent("message", { data: structuredClone(data) });
      this.dispatchEvent(event);
      this.onmessage?.(event);
    }

    postMessage(data) {
      if (!this.ready) return this.waiting.push(data);
      this.inside.dispatchEvent(new MessageEvent("message", { data: structuredClone(data) }));
    }
  };
}
