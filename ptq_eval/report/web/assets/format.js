"use strict";
// Numbers as the other pages write them (report/common/numbers.py), and the files that this page holds, as tables.
const ptq = {};
ptq.data = JSON.parse(document.getElementById("data").textContent);

// A table as objects.  Not d3.csvParse, which compiles a function from text: the page's policy forbids that.
ptq.csv = (text) => {
  const [names, ...rows] = d3.csvParseRows(text);
  return rows.map((row) => Object.fromEntries(names.map((name, i) => [name, row[i]])));
};
ptq.TEXT = new Set(["run", "quantizer", "kind", "shown", "method", "name", "family", "label", "checkpoint", "layer", "panel", "model", "format"]);
ptq.rowsOf = (() => {
  const read = new Map();
  return (name) => {
    if (!read.has(name)) {
      const text = ptq.data.files[name];
      const number = (row) => {
        for (const key in row) if (!ptq.TEXT.has(key)) row[key] = row[key] === "" ? NaN : +row[key];
        return row;
      };
      read.set(name, text ? ptq.csv(text).map(number) : []);
    }
    return read.get(name);
  };
})();

ptq.RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹";
ptq.times = (power) => `×10${power < 0 ? "⁻" : ""}${[...String(Math.abs(power))].map((d) => ptq.RAISED[d]).join("")}`;
ptq.scientific = (value) => {
  const [digits, power] = value.toExponential(2).split("e");
  return digits + ptq.times(+power);
};
// Three significant digits: 0.0123, 12.3, 12,345.
ptq.short = (value) => {
  if (!Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  if (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6) return ptq.scientific(value);
  const decimals = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value)) + 1e-12));
  const [whole, part] = value.toFixed(decimals).split(".");
  const text = whole.replace(/\B(?=(\d{3})+(?!\d))/g, ",") + (part ? `.${part}` : "");
  return part ? text.replace(/0+$/, "").replace(/\.$/, "") : text;
};
// The label of a tick: a power of ten where it is small.
ptq.tick = (value) => {
  const power = Math.log10(Math.abs(value));
  if (value === 0 || power > -3 || Math.abs(power - Math.round(power)) > 1e-9) return ptq.short(value);
  return (value < 0 ? "−" : "") + ptq.times(Math.round(power)).slice(1);
};
// Tokens: 1.23M, 300B.
ptq.count = (value) => {
  if (!Number.isFinite(value)) return "–";
  const units = ["", "k", "M", "B", "T", "P", "E"];
  let power = Math.max(0, Math.floor(Math.log10(Math.max(value, 1)) / 3 + 1e-12));
  let digits = +(value / 1000 ** power).toPrecision(3);
  if (digits >= 1000) { power += 1; digits = +(value / 1000 ** power).toPrecision(3); }
  return power < units.length ? `${digits}${units[power]}` : ptq.scientific(value);
};
// 0.1234(56): two digits of the error.
ptq.withError = (value, error) => {
  if (!Number.isFinite(value)) return "–";
  if (!Number.isFinite(error) || error <= 0) return value.toFixed(4);
  const place = +error.toExponential(1).split("e")[1] - 1;
  if (place >= 0) return `${Math.round(value / 10 ** place) * 10 ** place}(${Math.round(error / 10 ** place) * 10 ** place})`;
  const digits = Math.round(+`${error}e${-place}`.replace(/e(.*)e(.*)/, (_, a, b) => `e${+a + +b}`));
  if (-place > 7) {
    const power = Math.floor(Math.log10(Math.max(Math.abs(value), error)));
    if (power < -3) return `${(value / 10 ** power).toFixed(power - place)}(${digits})${ptq.times(power)}`;
  }
  return `${value.toFixed(-place)}(${digits})`;
};
// The number that a cell of a table begins with, for sorting; text sorts after all numbers.
ptq.leading = (text) => {
  const found = /^[^\d\-−–+.]*([+\-−]?[\d,]*\.?\d+)(?:\(\d+\))?(?:×10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?([kMBTPE](?![a-z]))?/.exec(text.trim());
  if (!found) return NaN;
  const raised = (found[2] || "⁰").replace("⁻", "-").replace(/[⁰¹²³⁴⁵⁶⁷⁸⁹]/g, (d) => ptq.RAISED.indexOf(d));
  const unit = { k: 3, M: 6, B: 9, T: 12, P: 15, E: 18 }[found[3]] || 0;
  return +found[1].replace(/,/g, "").replace("−", "-") * 10 ** (+raised + unit);
};

// What is switched off, for every figure and table; `changed` are told.
ptq.off = { runs: new Set(), quantizers: new Set(), bits: new Set() };
ptq.changed = [];
ptq.showsRun = (run) => !ptq.off.runs.has(run);
ptq.showsLabel = (label) => !ptq.off.quantizers.has(ptq.data.toggles[label] ?? label);
ptq.showsBits = (bits) => !(Number.isFinite(bits) && ptq.off.bits.has(bits));
ptq.shows = (row) => ptq.showsRun(row.run) && ptq.showsLabel(row.quantizer ?? row.method) && ptq.showsBits(row.bits);

ptq.element = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
};
