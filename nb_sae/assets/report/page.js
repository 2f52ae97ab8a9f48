// The page's own controls: theme, folding of code, and where in the contents the reader is.
{
  const root = document.documentElement;
  const themes = ["auto", "light", "dark"];
  const themeButton = document.getElementById("toggle-theme");
  const showTheme = () => {
    themeButton.textContent = `Theme: ${root.dataset.nbsaeTheme}`;
  };
  themeButton.addEventListener("click", () => {
    const next = themes[(themes.indexOf(root.dataset.nbsaeTheme) + 1) % themes.length];
    root.dataset.nbsaeTheme = next;
    showTheme();
    try {
      localStorage.setItem("nbsae-theme", next);
    } catch {
      // Without storage the choice lasts as long as the page.
    }
  });
  showTheme();

  // Plotly paints its own background: give it the page's colours where a figure does not name its own.
  const paint = () => {
    const colour = getComputedStyle(root.querySelector("body")).color;
    const faint = getComputedStyle(root.querySelector("footer")).borderTopColor;
    const change = { "template.layout.paper_bgcolor": "rgba(0,0,0,0)", "template.layout.plot_bgcolor": "rgba(0,0,0,0)" };
    change["template.layout.font.color"] = colour;
    for (const axis of ["xaxis", "yaxis"]) {
      for (const part of ["gridcolor", "zerolinecolor", "linecolor"]) change[`template.layout.${axis}.${part}`] = faint;
    }
    for (const figure of document.querySelectorAll(".js-plotly-plot")) {
      // A figure without a background of its own lies on the page, so its text takes the colour of the page's.
      const clear = /^rgba\(.*,\s*0(\.0*)?\)$|^transparent$/.test(figure.layout?.paper_bgcolor ?? "");
      globalThis.Plotly.relayout(figure, clear ? { ...change, "font.color": colour } : change);
    }
  };
  globalThis.nbsaeReport?.ready.then(() => {
    if (!globalThis.Plotly) return;
    paint();
    new MutationObserver(paint).observe(root, { attributeFilter: ["data-nbsae-theme"] });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  });

  // Paper is light, whatever the screen is; what is higher than a page may be cut, or it would leave one empty.
  let before = null;
  addEventListener("beforeprint", () => {
    before ??= root.dataset.nbsaeTheme;
    root.dataset.nbsaeTheme = "light";
    for (const view of document.querySelectorAll(".nbsae-view, .nbsae-plotly")) {
      view.classList.toggle("nbsae-tall", view.offsetHeight > (Number(root.dataset.sheet) || 1000));
    }
  });
  addEventListener("afterprint", () => {
    root.dataset.nbsaeTheme = before ?? "auto";
    before = null;
  });

  const codeButton = document.getElementById("toggle-code");
  const sources = [...document.querySelectorAll("details.source")];
  if (codeButton && sources.length === 0) codeButton.remove();
  if (codeButton) {
    const showFold = () => {
      const open = sources.some((source) => source.open);
      codeButton.textContent = open ? "Fold code" : "Show code";
      codeButton.setAttribute("aria-pressed", String(!open));
    };
    codeButton.addEventListener("click", () => {
      const open = !sources.some((source) => source.open);
      for (const source of sources) source.open = open;
      showFold();
    });
    for (const source of sources) source.addEventListener("toggle", showFold);
    showFold();
  }

  const links = new Map(
    [...document.querySelectorAll("nav a")].map((link) => [decodeURIComponent(link.hash.slice(1)), link]),
  );
  const marks = [...links.keys()].map((id) => document.getElementById(id)).filter(Boolean);
  let waiting = false;
  const follow = () => {
    waiting = false;
    const passed = marks.filter((mark) => mark.getBoundingClientRect().top < 120);
    const here = passed.at(-1)?.id;
    for (const [id, link] of links) {
      if (id === here) link.setAttribute("aria-current", "location");
      else link.removeAttribute("aria-current");
    }
  };
  addEventListener(
    "scroll",
    () => {
      if (!waiting) requestAnimationFrame(follow);
      waiting = true;
    },
    { passive: true },
  );
  follow();
}
