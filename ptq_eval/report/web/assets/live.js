"use strict";
// A page that is served asks its server how far the run is, and loads itself again when there is more to show.
ptq.live = () => {
  const banner = document.querySelector(".live"), key = "ptq-eval-live", loaded = Date.now(), every = 2000, calm = 8000;
  const kept = () => ({
    off: Object.fromEntries(Object.entries(ptq.off).map(([kind, values]) => [kind, [...values]])),
    filter: document.getElementById("filter")?.value ?? "", open: Boolean(banner.querySelector("details")?.open),
  });
  const restore = ({ off = {}, filter = "", open = false }) => {
    for (const [kind, values] of Object.entries(off)) for (const box of document.querySelectorAll(`[data-switches="${kind}"] input`))
      if (values.map(String).includes(box.dataset.value)) box.click();
    if (filter) ptq.make(document.getElementById("measurements"));
    const search = document.getElementById("filter");
    if (search && filter) { search.value = filter; search.dispatchEvent(new Event("input")); }
    if (open && banner.querySelector("details")) banner.querySelector("details").open = true;
  };
  try { restore(JSON.parse(sessionStorage.getItem(key) || "{}")); sessionStorage.removeItem(key); } catch { /* not allowed */ }
  const ask = async () => {
    try {
      const state = await (await fetch("progress.json", { cache: "no-store" })).json();
      if (state.version !== banner.dataset.version) {
        const { open } = kept();
        document.getElementById("progress").innerHTML = state.banner;
        if (open) banner.querySelector("details").open = true;
        if (Date.now() - loaded > calm && !document.hidden && !document.activeElement?.matches("input[type=search]")) {
          try { sessionStorage.setItem(key, JSON.stringify(kept())); } catch { /* not allowed */ }
          location.reload();
          return;
        }
      }
    } catch {
      document.getElementById("progress").textContent = "The server has ended; this is what it showed last.";
      return;
    }
    setTimeout(ask, every);
  };
  setTimeout(ask, every);
};
ptq.live();
