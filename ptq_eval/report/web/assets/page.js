"use strict";
// The page: switches, figures, tables, downloads, colours.
ptq.controls = (host) => {
  const { style, runs, toggles } = ptq.data;
  const picture = (symbol, colour) => {
    const [shape, turn] = ptq.symbol(symbol, 5);
    const svg = d3.create("svg").attr("viewBox", "-8 -7 16 14").attr("aria-hidden", "true");
    svg.append("path").attr("d", shape).attr("transform", turn || null).attr("fill", colour);
    return svg.node();
  };
  const summary = ptq.element("summary");
  const groups = [
    ["runs", "Runs", runs.map((run) => [run.name, run.title, runs.length > 1 ? picture(ptq.mark(run.name), "currentColor") : null])],
    ["quantizers", "Quantizers", [...new Set(Object.values(toggles))].map((name) =>
      [name, name, style.methods[name] ? picture(style.methods[name].marker, style.methods[name].color) : null])],
    ["bits", "Bits", Object.keys(style.bits).map((bits) => [+bits, `${bits}`, picture("s", ptq.colour(bits))])],
  ];
  const say = () => {
    const parts = groups.map(([kind, name, all]) => `${all.length - ptq.off[kind].size} of ${all.length} ${name.toLowerCase()}`);
    summary.textContent = `Shown in figures and tables: ${parts.join(", ").replace("bits", "bit-widths")}`;
  };
  const sets = groups.map(([kind, name, all]) => ptq.element("fieldset", { "data-switches": kind }, ptq.element("legend", {}, name),
    ...all.map(([value, text, image]) => {
      const box = ptq.element("input", { type: "checkbox", checked: true, "data-value": value });
      box.addEventListener("change", () => {
        if (box.checked) ptq.off[kind].delete(value); else ptq.off[kind].add(value);
        say();
        ptq.changed.forEach((tell) => tell());
      });
      return ptq.element("label", {}, box, ...(image ? [image] : []), text);
    })));
  const details = ptq.element("details", { class: "controls", open: innerWidth > 700 }, summary, ptq.element("div", {}, ...sets));
  host.replaceWith(details);
  say();
};

ptq.theme = (button) => {
  const order = ["automatic", "light", "dark"], key = "ptq-eval-colours";
  const stored = () => { try { return localStorage.getItem(key); } catch { return null; } };
  const set = (name) => {
    if (name === "automatic") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = name;
    button.textContent = `Colours: ${name}`;
    button.setAttribute("aria-label", `Colours: ${name}. Change`);
    try { localStorage.setItem(key, name); } catch { /* a page from a file may not be allowed to */ }
  };
  let now = order.includes(stored()) ? stored() : "automatic";
  set(now);
  button.addEventListener("click", () => set((now = order[(order.indexOf(now) + 1) % order.length])));
};

ptq.start = () => {
  ptq.theme(document.getElementById("theme"));
  const controls = document.getElementById("controls");
  if (controls) ptq.controls(controls);
  for (const box of document.querySelectorAll("#degradation > .scroll")) ptq.followSwitches(box);
  for (const table of document.querySelectorAll("section:not(#the-answer) .scroll > table")) ptq.sortable(table);
  for (const host of document.querySelectorAll(".chart")) {
    if (ptq.data.files[ptq.figure(host.dataset.figure).csv]) {
      const chart = new ptq.Chart(host, host.dataset.figure);
      ptq.whenNear(host, () => chart.draw());
    }
    else host.replaceChildren(ptq.element("p", { class: "note" }, "Nothing to draw."));
  }
  const host = document.getElementById("measurements");
  if (host) ptq.whenNear(host, () => ptq.measurements(host));
  document.addEventListener("click", (event) => {
    const name = event.target.closest?.("[data-download]")?.dataset.download;
    if (name) ptq.save(name, ptq.data.files[name], name.endsWith(".csv") ? "text/csv" : "application/json");
    for (const menu of document.querySelectorAll(".menu[open]")) if (!menu.contains(event.target) || event.target.closest("a")) menu.open = false;
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    ptq.tip(null);
    for (const menu of document.querySelectorAll(".menu[open]")) { menu.open = false; menu.querySelector("summary").focus(); }
  });
  document.documentElement.dataset.ready = "true";
};
ptq.start();
