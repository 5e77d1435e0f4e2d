"use strict";
// Tables: every one sorts; those of δ follow the switches; that of all measurements is made here and filters too.
ptq.sortable = (table) => {
  const heads = [...table.querySelectorAll("thead th")];
  if (table.tBodies.length === 0 || table.tBodies[0].rows.length < 3) return;
  heads.forEach((head, column) => {
    const button = ptq.element("button", { type: "button" });
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((one) => one.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      ptq.sort(table, column, down ? -1 : 1);
    });
  });
};
ptq.sort = (table, column, sign) => {
  const body = table.tBodies[0], rows = [...body.rows];
  const keys = new Map(rows.map((row) => {
    const cell = row.cells[column], text = cell.textContent;
    return [row, [cell.dataset.value ? +cell.dataset.value : ptq.leading(text), text]];
  }));
  const numbers = [...keys.values()].some(([value]) => Number.isFinite(value)) && table.querySelectorAll("thead th")[column].classList.contains("right");
  const compare = ([a, s], [b, t]) => {
    if (!numbers) return sign * s.localeCompare(t, "en", { numeric: true });
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return sign * (a - b);
  };
  body.append(...rows.sort((a, b) => compare(keys.get(a), keys.get(b))));
};

// A degradation table: the columns of what is switched off are hidden, and the whole table with its run.
ptq.followSwitches = (box) => {
  const heading = box.previousElementSibling;
  const run = heading && ptq.data.runs.find((one) => one.title === heading.textContent);
  const columns = [...box.querySelectorAll("thead th")].map((head) => ptq.data.columns[head.textContent]);
  if (!columns.some(Boolean)) return;
  ptq.changed.push(() => {
    const shown = columns.map((of) => !of || (ptq.showsLabel(of[0]) && ptq.showsBits(of[1])));
    for (const row of box.querySelectorAll("tr")) [...row.cells].forEach((cell, i) => { cell.hidden = !shown[i]; });
    if (run) box.hidden = heading.hidden = !ptq.showsRun(run.name);
  });
};

ptq.measurements = (host) => {
  const { labels, runtime, cells, runs, full_precision } = ptq.data;
  const owner = new Map(runs.flatMap((run) => run.members.map((name) => [name, run.name])));
  const rows = ptq.csv(ptq.data.files["degradation.csv"]).map((row, i) => ({ ...row, label: labels[i], runtime: runtime[i], cell: cells[i] }))
    .filter((row) => row.label !== full_precision);
  if (!rows.length) return;
  const number = (text) => (text === "" || text === undefined ? NaN : +text), fixed = (text) => (text ? (+text).toFixed(4) : "–");
  const columns = [
    ["run", (row) => row.run], ["step", (row) => row.step, (row) => row.step], ["D", (row) => ptq.count(number(row.tokens)), (row) => row.tokens],
    ["D/N", (row) => ptq.short(number(row.tokens_per_param)), (row) => row.tokens_per_param], ["quantizer", (row) => `${row.label} ${row.runtime}`.trim()],
    ["bits", (row) => row.bits, (row) => row.bits], ["effective bits", (row) => ptq.short(number(row.effective_bits)), (row) => row.effective_bits],
    ["loss before", (row) => fixed(row.loss_fp), (row) => row.loss_fp], ["loss after", (row) => fixed(row.loss_q), (row) => row.loss_q],
    ["δ", (row) => row.cell, (row) => row.delta], ["KL", (row) => ptq.short(number(row.kl)), (row) => row.kl],
    ["same top token", (row) => (row.top1_agreement ? `${(100 * row.top1_agreement).toFixed(1)} %` : "–"), (row) => row.top1_agreement],
    ["status", (row) => (row.message ? `${row.status}: ${row.message}` : row.status)],
  ];
  const body = ptq.element("tbody");
  const made = rows.map((row) => {
    const line = ptq.element("tr", {}, ...columns.map(([, text, value]) => ptq.element("td",
      value ? { class: "right", "data-value": value(row) || "NaN" } : {}, text(row) ?? "")));
    return { row, line, words: columns.map(([, text]) => text(row)).join(" ").toLowerCase() };
  });
  body.append(...made.map(({ line }) => line));
  const table = ptq.element("table", {}, ptq.element("thead", {}, ptq.element("tr", {},
    ...columns.map(([name, , value]) => ptq.element("th", { scope: "col", class: value ? "right" : null }, name)))), body);
  const search = ptq.element("input", { type: "search", id: "filter", placeholder: "gptq, 2 bits, llama…", autocomplete: "off" });
  const clear = ptq.element("input", { type: "checkbox", id: "filter-clear" });
  const found = ptq.element("span", { class: "note", role: "status", id: "filter-count" });
  const update = () => {
    const bits = []; // "2 bits" means these, not any 2
    const rest = search.value.toLowerCase().replace(/(\d+)\s*bits?\b/g, (_, n) => { bits.push(+n); return ""; });
    const words = rest.split(/[\s,]+/).filter(Boolean);
    let n = 0;
    for (const { row, line, words: text } of made) {
      const noise = /[°–]/.test(row.cell);
      const shown = ptq.showsRun(owner.get(row.run)) && ptq.showsLabel(row.label) && ptq.showsBits(+row.bits)
        && !(clear.checked && noise) && (!bits.length || bits.includes(+row.bits)) && words.every((word) => text.includes(word));
      line.hidden = !shown;
      n += shown;
    }
    found.textContent = `${n} of ${made.length} measurements`;
  };
  search.addEventListener("input", update);
  clear.addEventListener("change", update);
  ptq.changed.push(update);
  host.replaceChildren(
    ptq.element("h3", {}, "Every measurement"),
    ptq.element("p", { class: "filter" }, ptq.element("label", { for: "filter" }, "Filter", search),
      ptq.element("label", {}, clear, "only δ beyond its noise"), found,
      ptq.element("button", { type: "button", "data-download": "degradation.csv" }, "degradation.csv")),
    ptq.element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Every measurement" }, table),
  );
  ptq.sortable(table);
  update();
};
