// The language, the theme and which conversation this tab shows: all that the browser keeps.
(() => {
  const language = document.documentElement.lang;
  // Gradio's own words follow the browser's language; the page may speak another.
  for (const [name, value] of [["language", language], ["languages", [language]]]) {
    Object.defineProperty(Navigator.prototype, name, { get: () => value, configurable: true });
  }

  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const wanted = () => localStorage.getItem("qwen-agent-theme") ?? (dark.matches ? "dark" : "light");
  const paint = () => {
    document.body?.classList.toggle("dark", wanted() === "dark");
    document.documentElement.style.colorScheme = wanted();
    document.querySelector("#theme")?.setAttribute("aria-pressed", String(wanted() === "dark"));
  };
  dark.addEventListener("change", paint);
  // Gradio paints by itself while it starts.
  const painter = new MutationObserver(() => {
    if (document.body.classList.contains("dark") !== (wanted() === "dark")) paint();
  });
  document.addEventListener("DOMContentLoaded", () => {
    paint();
    painter.observe(document.body, { attributes: true, attributeFilter: ["class"] });
  });

  document.addEventListener("click", (event) => {
    if (event.target.closest?.("#theme")) {
      localStorage.setItem("qwen-agent-theme", wanted() === "dark" ? "light" : "dark");
      paint();
    }
    const link = event.target.closest?.("a[data-language]");
    if (link) document.cookie = `qwen-agent-language=${link.dataset.language}; path=/; max-age=31536000; samesite=strict`;
  });

  // Each tab has its own conversation. Its key is a secret of this tab: no address, no cookie and no log holds it.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  const fresh = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  const key = sessionStorage.getItem("qwen-agent-conversation") ?? fresh;
  sessionStorage.setItem("qwen-agent-conversation", key);
  const send = window.fetch;
  // What is asked goes on as long as a tab is there to see it. Browsers let hidden tabs speak up once a minute.
  setInterval(() => send("../here", { method: "POST", headers: { "x-conversation": key } }).catch(() => {}), 20_000);
  window.fetch = async (input, init) => {
    const address = new URL(input instanceof Request ? input.url : input, document.baseURI);
    if (address.origin === location.origin && address.pathname.endsWith("/gradio_api/queue/join")) {
      const headers = new Headers(init?.headers ?? (input instanceof Request ? input.headers : undefined));
      headers.set("x-conversation", key);
      init = { ...init, headers };
    }
    return send(input, init);
  };
})();
