"use strict";
// The figures of single layers: their damage, predicted and measured, and mixed models of layers in different formats.
ptq.blank = (key, title, x, y) => ({ key, title, x, y, points: [], lines: [], areas: [], marks: [], spans: [], labels: [], notes: [] });
ptq.positive = (values) => values.filter((value) => value > 0);

ptq.sensitivity = (name) => ({
  caption: `Damage of layers quantized by ${name}, predicted and measured`,
  csv: `figures/sensitivity_${name}.csv`,
  columns: 3,
  options: {},
  panels() {
    return d3.groups(ptq.rowsOf(this.csv), (row) => row.checkpoint).flatMap(([checkpoint, all]) => {
      const rows = all.filter((row) => ptq.showsBits(row.bits)), layers = rows.filter((row) => row.kind === "layer" && row.predicted > 0);
      return layers.length ? [this.layers(checkpoint, layers, "delta", "δ"), this.layers(checkpoint, layers, "kl", "KL"),
        this.joint(checkpoint, rows.filter((row) => row.kind === "joint"))] : [];
    });
  },
  layers(checkpoint, rows, column, word) {
    const domain = ptq.spread(rows.map((row) => row.predicted), 2), seen = rows.filter((row) => row[column] > 0);
    const panel = ptq.blank(`${checkpoint}|${column}`, `${checkpoint}: ${word} of one layer`,
      { label: "predicted (nats per token)", kind: "log", format: ptq.tick, domain },
      { label: `${word}, measured (nats per token)`, kind: "log", format: ptq.tick,
        domain: ptq.spread([...domain, ...seen.map((row) => row[column])], 1.5) });
    panel.lines.push({ grey: true, points: domain.map((end) => ({ x: end, y: end })) });
    panel.points.push(...d3.sort(seen, (row) => row.predicted).map((row) => ({
      x: row.predicted, y: row[column], error: row[`${column}_se`], colour: ptq.colour(row.bits), symbol: "o", size: 2.8, series: `${row.bits} bits`,
      text: [row.layer, `${row.bits} bits`, `${word} ${ptq.withError(row[column], row[`${column}_se`])}`,
        `predicted ${ptq.withError(row.predicted, row.predicted_se)}`],
    })));
    if (seen.length < rows.length) panel.notes.push(`${rows.length - seen.length} layers with ${word} ≤ 0: below the axis`);
    return panel;
  },
  joint(checkpoint, rows) {
    const own = d3.sort(rows, (row) => row.bits), values = own.flatMap((row) => ptq.positive([row.kl, row.delta, row.predicted, row.bound]));
    const panel = ptq.blank(`${checkpoint}|joint`, `${checkpoint}: all layers together`,
      { label: "bits", kind: "linear", format: ptq.short, domain: [d3.min(own, (row) => row.bits) - 0.4, d3.max(own, (row) => row.bits) + 0.4] },
      { label: "nats per token", kind: "log", format: ptq.tick, domain: values.length ? ptq.spread(values, 1.8) : [0.1, 1] });
    const line = (name) => own.filter((row) => row[name] > 0).map((row) => ({ x: row.bits, y: row[name] }));
    const rounding = (row) => Math.hypot(row.spread, row.scatter || 0);
    panel.areas.push({ colour: "#7F7F7F", opacity: 0.25, points: own.map((row) => ({
      x: row.bits, low: Math.max(row.predicted - rounding(row), panel.y.domain[0]), high: row.predicted + rounding(row) })) });
    panel.lines.push({ ink: true, points: line("predicted") }, { colour: "#D55E00", dash: "5 3", points: line("bound") });
    for (const [name, word, colour, symbol] of [["kl", "KL", "#0072B2", "s"], ["delta", "δ", "#7F7F7F", "o"]]) {
      panel.points.push(...own.filter((row) => row[name] > 0).map((row) => ({
        x: row.bits, y: row[name], error: row[`${name}_se`], colour, symbol, size: 3.6, series: `${word}, all layers`,
        text: [`all layers, ${row.bits} bits`, `${word} ${ptq.withError(row[name], row[`${name}_se`])}`,
          `predicted ${ptq.withError(row.predicted, row.predicted_se)}`, ...(row.bound > 0 ? [`bound ${ptq.short(row.bound)}`] : [])],
      })));
    }
    const lost = own.filter((row) => !(row.delta > 0)).map((row) => row.bits);
    if (lost.length) panel.notes.push(`${lost.join(", ")} bits: δ ≤ 0`);
    return panel;
  },
  legend() {
    const rows = ptq.rowsOf(this.csv).filter((row) => ptq.showsBits(row.bits));
    return [
      ...ptq.legendOfBits(rows, "o"), { line: true, grey: true, text: "measured = predicted" },
      { symbol: "s", colour: "#0072B2", text: "KL, all layers" }, { symbol: "o", colour: "#7F7F7F", text: "δ, all layers" },
      { line: true, ink: true, text: "predicted" }, { area: 0.25, text: "± roundings (of δ)" },
      ...(rows.some((row) => row.bound > 0) ? [{ line: true, dash: "5 3", colour: "#D55E00", text: "bound C·4^−bits" }] : []),
    ];
  },
});

ptq.figures.mixed = {
  caption: "Mixed models and models with one format: KL against size, and the format of each layer",
  csv: "figures/mixed.csv",
  columns: 2,
  options: { ylog: true },
  words: { ylog: "KL on a logarithmic axis" },
  panels(options) {
    return d3.groups(ptq.rowsOf(this.csv), (row) => row.panel)
      .flatMap(([name, rows]) => [this.sizes(name, rows.filter((row) => row.kind !== "layer"), options), this.layers(name, rows.filter((row) => row.kind === "layer"))]);
  },
  sizes(name, all, options) {
    const rows = d3.sort(all.filter((row) => row.kl > 0), (row) => row.megabytes), uniform = rows.filter((row) => row.kind === "uniform");
    const values = rows.flatMap((row) => ptq.positive([row.kl, row.predicted_kl])), ends = d3.extent(rows, (row) => row.megabytes);
    const side = 0.08 * (ends[1] - ends[0] || 1);
    const panel = ptq.blank(`${name}|size`, name, { label: "MB of all weights", kind: "linear", format: ptq.short, domain: [ends[0] - side, ends[1] + 2 * side] },
      { label: "KL (nats per token)", kind: options.ylog ? "log" : "linear", format: ptq.tick, domain: options.ylog ? ptq.spread(values, 1.5) : [0, 1.06 * d3.max(values)] });
    panel.lines.push({ grey: true, points: uniform.map((row) => ({ x: row.megabytes, y: row.kl })) });
    panel.labels.push(...uniform.map((row) => ({ x: row.megabytes, y: row.kl, text: row.model })));
    const text = (row) => [row.kind === "mixed" ? `mixed, ${row.model}` : row.model, `${ptq.short(row.megabytes)} MB, ${row.bits_per_weight.toFixed(3)} bits per weight`,
      `KL ${ptq.withError(row.kl, row.kl_se)}`, ...(Number.isFinite(row.predicted_kl) ? [`predicted ${ptq.short(row.predicted_kl)}`] : [])];
    const mixed = (row) => row.kind === "mixed", orange = "#D55E00";
    panel.points.push(...rows.filter((row) => mixed(row) && row.predicted_kl > 0).map((row) => ({
      x: row.megabytes, y: row.predicted_kl, colour: orange, hollow: true, symbol: "o", size: 6, series: "predicted", text: text(row) })));
    panel.points.push(...rows.map((row) => ({
      x: row.megabytes, y: row.kl, error: row.kl_se, colour: mixed(row) ? orange : "#7F7F7F", symbol: mixed(row) ? "o" : "s",
      size: mixed(row) ? 3.4 : 4, series: mixed(row) ? "mixed" : "one format", text: text(row) })));
    return panel;
  },
  layers(name, rows) {
    const names = [...new Set(rows.map((row) => row.layer))], models = [...new Set(d3.sort(rows, (row) => row.megabytes).map((row) => row.model))];
    const bits = d3.extent(rows, (row) => row.bits), beside = (model) => 0.7 * ((models.indexOf(model) + 0.5) / models.length - 0.5);
    const panel = ptq.blank(`${name}|layers`, `${name}: bits of each layer`,
      { label: "layer, in the order of the model", kind: "linear", format: ptq.short, domain: [0, names.length + 1] },
      { label: "bits", kind: "linear", format: ptq.short, domain: [bits[0] - 0.5, bits[1] + 0.5] });
    panel.points.push(...d3.sort(rows, (row) => names.indexOf(row.layer)).map((row) => ({
      x: names.indexOf(row.layer) + 1, y: row.bits + beside(row.model), colour: ptq.colour(row.bits), series: row.model,
      symbol: ptq.data.style.marks[models.indexOf(row.model) % ptq.data.style.marks.length], size: 2.8,
      text: [row.layer, `mixed, ${row.model}: ${row.format}`, `KL of this model ${ptq.withError(row.kl, row.kl_se)}`],
    })));
    return panel;
  },
  legend() {
    const models = [...new Set(d3.sort(ptq.rowsOf(this.csv).filter((row) => row.kind === "layer"), (row) => row.megabytes).map((row) => row.model))];
    return [
      { symbol: "s", line: true, colour: "#7F7F7F", text: "one format" }, { symbol: "o", colour: "#D55E00", text: "mixed, measured" },
      { symbol: "o", ring: true, text: "mixed, predicted" },
      ...models.map((model, i) => ({ symbol: ptq.data.style.marks[i % ptq.data.style.marks.length], ink: true, text: `layers of ${model}` })),
    ];
  },
};

// The figure of a name; each quantizer has one of its layers.
ptq.figure = (name) => ptq.figures[name] ||= ptq.sensitivity(name.slice("sensitivity_".length));
