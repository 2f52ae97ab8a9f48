// Saved views take the theme of the page and are as high as what they show. From a folder a browser keeps frames apart:
// then they follow the system's theme and keep the height that the page gives them.
(() => {
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  const inside = (frame) => {
    try {
      return frame.contentDocument;
    } catch {
      return null;
    }
  };
  const theme = () => (document.body.dataset.mdColorScheme === "slate" ? "dark" : "light");
  const paint = (frame) => {
    const root = inside(frame)?.documentElement;
    if (root) root.dataset.nbsaeTheme = theme();
  };
  const fit = (frame) => {
    const body = inside(frame)?.body;
    if (!body) return;
    const measure = () => {
      const height = Math.ceil(body.getBoundingClientRect().height) + 4;
      if (height > 100 && Math.abs(height - frame.clientHeight) > 3) frame.style.height = `${height}px`;
    };
    new (frame.contentWindow.ResizeObserver)(measure).observe(body);
    measure();
  };
  const frames = [...document.querySelectorAll(".saved-view iframe")];
  for (const frame of frames) {
    const begin = () => {
      paint(frame);
      fit(frame);
    };
    frame.addEventListener("load", begin);
    if (inside(frame)?.readyState === "complete" && inside(frame).URL !== "about:blank") begin();
  }
  new MutationObserver(() => frames.forEach(paint)).observe(document.body, { attributeFilter: ["data-md-color-scheme"] });
})();
