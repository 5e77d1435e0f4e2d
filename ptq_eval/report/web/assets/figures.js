"use strict";
// What each figure shows, as panels: made anew from the tables whenever a switch is changed.
// A panel: { key, title, x, y, points, lines, areas, marks, spans, labels, notes }, x and y: { kind, label, format, domain }.
ptq.colour = (bits) => ptq.data.style.bits[bits] || ptq.data.style.other_bits[bits] || "#7F7F7F";
ptq.place = (run) => Math.max(0, ptq.data.runs.findIndex((one) => one.name === run));
ptq.mark = (run) => ptq.data.style.marks[ptq.place(run) % ptq.data.style.marks.length];
ptq.dash = (run) => ptq.data.style.lines[ptq.place(run) % ptq.data.style.lines.length];
ptq.title = (run) => (ptq.data.runs.find((one) => one.name === run) || { title: run }).title;
ptq.spread = (values, margin) => [d3.min(values) / margin, d3.max(values) * margin];
ptq.at = (row) => `D = ${ptq.count(row.tokens)}` + (row.params > 0 ? `, D/N = ${ptq.short(row.tokens / row.params)}` : "");

ptq.bands = (rows, colour, names, name) => {
  const areas = [["low", 0.15], ["low_50", 0.3]].map(([low, opacity], i) => ({
    points: rows.map((row) => ({ x: row.tokens, low: row[names[i][0]], high: row[names[i][1]] })), colour, opacity,
  }));
  const points = rows.map((row, i) => ({
    x: row.tokens, y: row.loss, hover: true, spoken: i === rows.length - 1, series: name,
    text: [name, ptq.at(row), `median ${row.loss.toFixed(3)}`,
      `50 %: ${row[names[1][0]].toFixed(3)} to ${row[names[1][1]].toFixed(3)}`,
      `90 %: ${row[names[0][0]].toFixed(3)} to ${row[names[0][1]].toFixed(3)}`],
  }));
  return { areas, points };
};

// How much of each curve the axis of the loss shows: `ceiling` of report/run/loss_figure.py.
ptq.lossAxis = (before, after, ahead) => {
  const { visible, far, least_fall } = ptq.data.axes;
  const losses = before.map((row) => row.loss);
  const fall = losses.length ? Math.max(d3.max(losses) - d3.min(losses), least_fall) : least_fall;
  const ends = d3.rollups(after, (own) => d3.extent(own, (row) => row.loss), (row) => row.bits);
  const bottom = d3.min([...losses, ...ends.map(([, [low]]) => low)]);
  const near = ends.filter(([, [low]]) => low <= bottom + far * fall);
  const top = d3.max([...losses, ...near.map(([, [low, high]]) => Math.min(high, low + visible * fall))]);
  const beyond = d3.min(ahead.flatMap((row) => [row.loss, row.low]).filter(Number.isFinite)) ?? bottom;
  const least = Math.min(bottom, Math.max(beyond, bottom - 0.5 * (top - bottom)));
  const pad = 0.06 * (top - least) || 0.1;
  return [[least - pad, top + pad], ends.filter((one) => !near.includes(one)).map(([bits]) => bits)];
};

ptq.figures = {
  loss_vs_tokens: {
    caption: "Loss before and after quantization against D",
    csv: "figures/loss_vs_tokens.csv",
    options: { xlog: true, ylog: false, forecast: true },
    panels(options) {
      const groups = d3.groups(ptq.rowsOf(this.csv), (row) => row.run, (row) => row.quantizer);
      const runs = ptq.data.runs.map((one) => one.name);
      return runs.flatMap((run) => (groups.find(([name]) => name === run) || [run, []])[1]
        .filter(([label]) => ptq.showsRun(run) && ptq.showsLabel(label))
        .map(([label, rows]) => this.panel(run, label, rows.filter((row) => ptq.showsBits(row.bits)), options)));
    },
    panel(run, label, rows, options) {
      const of = (...kinds) => rows.filter((row) => kinds.includes(row.kind));
      const before = of("before"), after = of("after");
      const ahead = options.forecast ? of("band", "ahead") : [];
      const turns = of("observed", ...(options.forecast ? ["forecast", "predicted"] : []));
      const [domain, above] = ptq.lossAxis(before, after, ahead);
      const panel = {
        key: `${run}|${label}`, title: `${ptq.title(run)}, ${label}`, points: [], lines: [], areas: [], marks: [],
        spans: [], labels: [], notes: [],
        x: { label: "D (tokens)", kind: options.xlog ? "log" : "linear", format: ptq.count,
          domain: options.xlog ? ptq.spread([...before, ...after, ...ahead, ...turns].map((row) => row.tokens), 1.35)
            : [0, 1.05 * d3.max([...before, ...after, ...ahead, ...turns], (row) => row.tokens)] },
        y: { label: "loss (nats per token)", kind: options.ylog ? "log" : "linear", format: ptq.short, domain },
      };
      const full = new Map(before.map((row) => [row.tokens, row]));
      panel.lines.push({ points: before.map((row) => ({ x: row.tokens, y: row.loss })), ink: true, opacity: 0.6 });
      panel.points.push(...before.map((row) => ({
        x: row.tokens, y: row.loss, ring: true, size: 5.2, symbol: "o", series: "before quantization",
        text: ["before quantization", ptq.at(row), `loss ${ptq.withError(row.loss, row.loss_se)}`],
      })));
      const widths = [...new Set(after.map((row) => row.bits))].sort(d3.ascending);
      widths.filter((bits) => !above.includes(bits)).reverse().forEach((bits) => {
        const own = after.filter((row) => row.bits === bits), colour = ptq.colour(bits);
        const size = widths.length > 1 ? 2.9 + (1.7 * widths.indexOf(bits)) / (widths.length - 1) : 3.4;
        panel.lines.push({ points: own.map((row) => ({ x: row.tokens, y: row.loss })), colour, opacity: 0.7 });
        panel.points.push(...own.map((row) => ({
          x: row.tokens, y: row.loss, error: row.loss_se, colour, size, symbol: "o", series: `${bits} bits`,
          text: [`${label}, ${bits} bits`, ptq.at(row), `loss ${row.loss.toFixed(4)}`,
            `δ ${ptq.withError(row.loss - (full.get(row.tokens) || {}).loss, row.loss_se)}`],
        })));
        const last = own[own.length - 1];
        if (last) panel.labels.push({ x: last.tokens, y: last.loss, text: `${bits}` });
        const band = ahead.filter((row) => row.kind === "band" && row.bits === bits);
        if (band.length) {
          const { areas, points } = ptq.bands(band, colour, [["low", "high"], ["low_50", "high_50"]],
            `forecast, ${label}, ${bits} bits`);
          panel.areas.push(...areas);
          panel.points.push(...points);
          panel.lines.push({ points: band.map((row) => ({ x: row.tokens, y: row.loss })), colour, dash: "5 3" });
        }
      });
      const median = ahead.filter((row) => row.kind === "ahead");
      if (median.length) {
        panel.lines.push({ points: median.map((row) => ({ x: row.tokens, y: row.loss })), ink: true, dash: "5 3" });
        panel.marks.push({ x: d3.min(median, (row) => row.tokens), grey: true, text: "origin" });
      }
      for (const turn of turns.filter((row) => !above.includes(row.bits))) {
        const seen = turn.kind === "observed", colour = ptq.colour(turn.bits);
        if (seen && turn.low > 0 && turn.high > 0) panel.spans.push({ from: turn.low, to: turn.high, colour });
        panel.marks.push({ x: turn.tokens, colour, dash: seen ? null : "2 3" });
      }
      const banded = new Set(ahead.filter((row) => row.kind === "band").map((row) => row.bits));
      const without = widths.filter((bits) => median.length && !banded.has(bits));
      if (without.length) panel.notes.push(`forecast of ${without.join(", ")} bits: as before quantization`);
      if (above.length) panel.notes.push(`${above.join(", ")} bits: above the axis`);
      for (const bits of widths.filter((one) => !above.includes(one))) {
        const cut = after.filter((row) => row.bits === bits && row.loss > domain[1]).length;
        if (cut) panel.notes.push(`${bits} bits: ${cut} points above the axis`);
      }
      if (!options.ylog) panel.y.domain = [domain[0] - 0.09 * panel.notes.length * (domain[1] - domain[0]), domain[1]];
      return panel;
    },
    legend(panels, options) {
      const rows = ptq.rowsOf(this.csv).filter(ptq.shows), kinds = new Set(rows.map((row) => row.kind));
      return [
        { symbol: "o", ring: true, text: "before quantization" },
        ...ptq.legendOfBits(rows.filter((row) => row.kind === "after"), "o"),
        ...(options.forecast && kinds.has("ahead") ? [{ line: true, grey: true, text: "origin of the forecast" },
          { line: true, dash: "5 3", grey: true, text: "forecast, median" }] : []),
        ...(options.forecast && kinds.has("band") ? [{ area: 0.45, text: "50 %" }, { area: 0.15, text: "90 %" }] : []),
        ...(kinds.has("observed") ? [{ line: true, ink: true, text: "turn observed, shaded: its interval" }] : []),
        ...(options.forecast && (kinds.has("forecast") || kinds.has("predicted"))
          ? [{ line: true, ink: true, dash: "2 3", text: "turn forecast or predicted" }] : []),
      ];
    },
  },

  delta_vs_ratio: {
    caption: "δ against D/N",
    csv: "figures/delta_vs_ratio.csv",
    options: { xlog: true, ylog: true },
    shared: true,
    panels(options) {
      const rows = ptq.rowsOf(this.csv), shown = rows.filter(ptq.shows);
      const linear = ptq.data.axes.linear.delta_vs_ratio || 0;
      const y = ptq.deltaAxis(shown, linear, options.ylog);
      return d3.groups(rows, (row) => row.quantizer).filter(([label]) => ptq.showsLabel(label)).map(([label, all]) => {
        const own = all.filter(ptq.shows);
        const panel = {
          key: label, title: label, points: [], lines: [], areas: [], marks: [], spans: [], labels: [], notes: [],
          x: { label: "D/N (tokens per parameter)", kind: options.xlog ? "log" : "linear", format: ptq.short,
            domain: options.xlog ? ptq.spread(rows.map((row) => row.tokens_per_param), 1.35)
              : [0, 1.05 * d3.max(rows, (row) => row.tokens_per_param)] },
          y,
        };
        for (const [run, bits, group] of d3.flatGroup(own, (row) => row.run, (row) => row.bits)) {
          const colour = ptq.colour(bits), runs = ptq.data.runs.length;
          const beside = options.xlog ? ptq.data.style.beside ** (ptq.place(run) - (runs - 1) / 2) : 1;
          const curve = group.filter((row) => row.kind === "fit");
          panel.lines.push({ colour, dash: ptq.DASHES[ptq.dash(run)], points: curve.map((row) => ({ x: row.tokens_per_param, y: row.delta })) });
          const points = group.filter((row) => row.kind === "measured");
          panel.points.push(...points.map((row) => ({
            x: row.tokens_per_param * beside, y: row.delta, error: row.delta_se, colour, size: 3.7, symbol: ptq.mark(run),
            hollow: row.shown === "noise", series: `${ptq.title(run)}, ${bits} bits`,
            text: [`${ptq.title(run)}, ${label}, ${bits} bits`, ptq.at(row), `δ ${ptq.withError(row.delta, row.delta_se)}`,
              ...(row.shown === "noise" ? ["not beyond its noise"] : [])],
          })));
        }
        return panel;
      });
    },
    legend() {
      const rows = ptq.rowsOf(this.csv).filter(ptq.shows), fits = rows.some((row) => row.kind === "fit");
      const noise = rows.filter((row) => row.shown === "noise").length;
      const runs = ptq.data.runs.filter((run) => rows.some((row) => row.run === run.name));
      return [
        ...ptq.legendOfBits(rows, "s"),
        ...runs.map((run) => ({ symbol: ptq.mark(run.name), ink: true, line: fits, dash: ptq.DASHES[ptq.dash(run.name)],
          text: run.title + (fits ? ", line: fit" : "") })),
        ...(noise ? [{ symbol: "o", ring: true, text: `hollow: |δ| not beyond its noise (${noise} points)` }] : []),
        ...(ptq.data.axes.linear.delta_vs_ratio ? [{ zone: true, text: "axis of δ near zero" }] : []),
      ];
    },
  },

  delta_vs_bits: {
    caption: "δ of every format at the last checkpoint",
    csv: "figures/delta_vs_bits.csv",
    options: { ylog: true },
    shared: true,
    columns: 2,
    panels(options) {
      const rows = ptq.rowsOf(this.csv), shown = rows.filter(ptq.shows);
      const y = ptq.deltaAxis(shown, ptq.data.axes.linear.delta_vs_bits || 0, options.ylog);
      const runs = d3.groups(rows, (row) => row.run).filter(([run]) => ptq.showsRun(run));
      return runs.flatMap(([run, all]) => Object.entries(ptq.data.axes.x_titles).map(([column, label]) => {
        const own = all.filter((row) => ptq.shows(row) && Number.isFinite(row[column]));
        const panel = {
          key: `${run}|${column}`, title: `${ptq.title(run)}, D = ${ptq.count(all[0].tokens)}`,
          points: [], lines: [], areas: [], marks: [], spans: [], labels: [], notes: [], y,
          x: { label, kind: "linear", format: ptq.short, key: column,
            domain: ((ends) => [ends[0] - 0.4, ends[1] + 0.4])(d3.extent(all.filter((row) => Number.isFinite(row[column])), (row) => row[column])) },
        };
        for (const [method, group] of d3.groups(own, (row) => row.method)) {
          const { color, marker } = ptq.data.style.methods[method];
          const integers = group.filter((row) => row.kind === "measured" && row.family === "int");
          panel.lines.push({ colour: color, opacity: 0.6,
            points: d3.sort(integers, (row) => row[column]).map((row) => ({ x: row[column], y: row.delta })) });
          panel.lines.push({ colour: color, dash: "1.5 2.5",
            points: group.filter((row) => row.kind === "fit").map((row) => ({ x: row[column], y: row.delta })) });
          panel.points.push(...d3.sort(group.filter((row) => row.kind === "measured"), (row) => row[column]).map((row) => ({
            x: row[column], y: row.delta, error: row.delta_se, colour: color, symbol: marker, size: 4,
            hollow: row.shown === "noise", series: method,
            text: [`${method}, ${row.name}`, `${ptq.short(row.effective_bits)} effective bits, ${ptq.short(row.ideal_bits)} ideal`,
              `δ ${ptq.withError(row.delta, row.delta_se)}`, ...(row.shown === "noise" ? ["not beyond its noise"] : [])],
          })));
        }
        return panel;
      }));
    },
    legend() {
      const rows = ptq.rowsOf(this.csv).filter(ptq.shows);
      return [
        ...[...new Set(rows.map((row) => row.method))].map((method) => ({ symbol: ptq.data.style.methods[method].marker,
          colour: ptq.data.style.methods[method].color, text: method })),
        { line: true, grey: true, text: "integers with a zero point, joined" },
        ...(rows.some((row) => row.kind === "fit") ? [{ line: true, grey: true, dash: "1.5 2.5", text: "law fitted to all formats" }] : []),
        ...(rows.some((row) => row.shown === "noise") ? [{ symbol: "o", ring: true, text: "hollow: |δ| not beyond its noise" }] : []),
      ];
    },
  },

  asked: {
    caption: "Had you asked earlier: the loss after quantization, forecast and measured",
    csv: "figures/asked.csv",
    columns: 4,
    options: { xlog: true, ylog: false },
    panels(options) {
      const groups = d3.flatGroup(ptq.rowsOf(this.csv), (row) => row.run, (row) => row.quantizer, (row) => row.bits);
      return groups.filter(([run, quantizer, bits]) => ptq.shows({ run, quantizer, bits }))
        .map(([run, label, bits, rows]) => this.panel(run, label, bits, rows, options));
    },
    panel(run, label, bits, rows, options) {
      const of = (kind) => rows.filter((row) => row.kind === kind), colour = ptq.colour(bits);
      const [before, known, later, band] = ["before", "known", "later", "band"].map(of);
      const origin = known[known.length - 1], whole = [{ ...origin }, ...band];
      for (const name of ["low_90", "low_50", "high_50", "high_90"]) whole[0][name] = origin.loss;
      const measured = [...before, ...known, ...later].map((row) => row.loss), [low, high] = d3.extent(measured);
      const bottom = Math.max(Math.min(low, d3.min(band, (row) => row.low_90)), low - (high - low));
      const top = Math.min(Math.max(high, d3.max(band, (row) => row.high_90)), high + (high - low));
      const pad = 0.05 * (top - bottom), line = (of) => of.map((row) => ({ x: row.tokens, y: row.loss }));
      const { areas, points } = ptq.bands(whole, colour, [["low_90", "high_90"], ["low_50", "high_50"]], "forecast of a checkpoint");
      const all = rows.map((row) => row.tokens);
      return {
        key: `${run}|${label}|${bits}`, title: `${ptq.title(run)}, ${label}, ${bits} bits`, areas,
        x: { label: "D (tokens)", kind: options.xlog ? "log" : "linear", format: ptq.count,
          domain: options.xlog ? ptq.spread(all, 1.2) : [0, 1.05 * d3.max(all)] },
        y: { label: "loss (nats per token)", kind: options.ylog ? "log" : "linear", format: ptq.short, domain: [bottom - pad, top + pad] },
        lines: [{ points: line(before), grey: true }, { points: line(whole), colour }],
        marks: [{ x: origin.tokens, grey: true, dash: "2 3", text: "origin" }], spans: [], labels: [], notes: [],
        points: [...points, ...[...known, ...later].map((row) => ({
          x: row.tokens, y: row.loss, colour, symbol: "o", size: 3.7, hollow: row.kind === "later", series: "measured",
          text: [`${label}, ${bits} bits`, ptq.at(row), `loss ${row.loss.toFixed(4)}`,
            row.kind === "later" ? "measured later" : "known to the forecast"],
        }))],
      };
    },
    legend() {
      return [
        { symbol: "o", ink: true, text: "measured, known to the forecast" },
        { symbol: "o", ring: true, text: "measured later" },
        { line: true, grey: true, text: "before quantization" },
        { line: true, grey: true, dash: "2 3", text: "origin of the forecast" },
        { line: true, ink: true, text: "forecast, median" },
        { area: 0.45, text: "interval of a checkpoint, 50 %" }, { area: 0.15, text: "90 %" },
      ];
    },
  },
};

ptq.DASHES = { "-": null, "--": "5 3", ":": "1.5 2.5", "-.": "5 2.5 1.5 2.5" };
ptq.legendOfBits = (rows, symbol) => [...new Set(rows.map((row) => row.bits))].filter(Number.isFinite).sort(d3.ascending)
  .map((bits) => ({ symbol, colour: ptq.colour(bits), text: `${bits} bits` }));

// The axis of δ: logarithmic, near zero linear where something is not beyond its noise (report/run/delta_figure.py).
ptq.deltaAxis = (rows, linear, log) => {
  const points = rows.filter((row) => row.kind === "measured"), error = (row) => row.delta_se || 0;
  const axis = { label: "δ (nats per token)", format: ptq.tick };
  if (!points.length) return { ...axis, kind: "linear", domain: [0, 1] };
  const top = d3.max(points, (row) => row.delta + error(row)), bottom = d3.min(points, (row) => row.delta - error(row));
  const pad = 0.06 * (top - Math.min(0, bottom));
  if (!log) return { ...axis, kind: "linear", domain: [Math.min(0, bottom) - pad, top + pad] };
  if (linear) return { ...axis, kind: "symlog", linear, domain: [Math.min(1.5 * bottom, -0.3 * linear), Math.max(top, linear) * 1.8] };
  return { ...axis, kind: "log", domain: [d3.min(points, (row) => row.delta) / 2.5, top * 1.8] };
};
