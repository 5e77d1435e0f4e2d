"use strict";
// Panels as SVG: axes, marks, hover, keyboard, zoom; and a figure as a file.
ptq.SYMBOLS = {
  o: [d3.symbolCircle, 0], s: [d3.symbolSquare, 0], "^": [d3.symbolTriangle, 0], D: [d3.symbolSquare, 45],
  v: [d3.symbolTriangle, 180], P: [d3.symbolCross, 0], X: [d3.symbolCross, 45], "<": [d3.symbolTriangle, -90], ">": [d3.symbolTriangle, 90],
};
ptq.symbol = (name, radius) => {
  const [type, turn] = ptq.SYMBOLS[name] || ptq.SYMBOLS.o;
  return [d3.symbol(type, Math.PI * radius * radius)(), turn ? `rotate(${turn})` : ""];
};
ptq.SPACE = { left: 50, right: 20, top: 26, bottom: 40, between: 10, row: 18 };

ptq.scale = (axis, domain, range) => {
  if (axis.kind === "log") return d3.scaleLog(domain.map((end) => Math.max(end, 1e-12)), range);
  if (axis.kind === "symlog") return d3.scaleSymlog(domain, range).constant(axis.linear / 3);
  return d3.scaleLinear(domain, range);
};
ptq.ticks = (axis, [low, high], most) => {
  if (axis.kind === "linear") return d3.ticks(low, high, most);
  const powers = (from, to) => d3.range(Math.floor(Math.log10(from)), Math.ceil(Math.log10(to)) + 1).map((n) => 10 ** n);
  if (axis.kind === "symlog") {
    const size = Math.max(Math.abs(low), Math.abs(high)), found = powers(axis.linear, size).filter((v) => v >= axis.linear * 0.99);
    const all = [...found.map((v) => -v), 0, ...found].filter((v) => v >= low && v <= high);
    return all.length > 2 ? all : d3.ticks(low, high, most);
  }
  const decades = Math.log10(high / low);
  if (decades < 0.35) return d3.ticks(low, high, most);
  const within = decades >= 1.6 ? [1] : decades >= 0.8 ? [1, 3] : [1, 1.5, 2, 3, 5, 7];
  const all = powers(low, high).flatMap((power) => within.map((n) => n * power)).filter((v) => v >= low && v <= high);
  return all.filter((_, i) => i % Math.ceil(all.length / most) === 0);
};

ptq.Chart = class {
  constructor(host, name) {
    Object.assign(this, { host, name, spec: ptq.figure(name), zoom: new Map(), focus: null, at: new Map() });
    this.options = { ...this.spec.options };
    const caption = ptq.element("figcaption", { id: `caption-${name}` }, this.spec.caption);
    host.setAttribute("aria-labelledby", caption.id);
    this.body = ptq.element("div");
    host.replaceChildren(caption, this.tools(), this.body);
    this.body.style.minHeight = "24rem";
    ptq.changed.push(() => { if (this.width) this.draw(); });
    new ResizeObserver(() => { if (this.width && Math.abs(this.body.clientWidth - this.width) > 1) this.draw(); }).observe(this.body);
  }

  tools() {
    const words = { xlog: "D on a logarithmic axis", ylog: this.spec.shared ? "δ on a logarithmic axis" : "loss on a logarithmic axis", forecast: "Forecast", ...this.spec.words };
    const toggles = Object.keys(this.options).map((key) => ptq.element("button", {
      type: "button", "aria-pressed": String(this.options[key]), "data-option": key,
      onclick: (event) => {
        this.options[key] = !this.options[key];
        event.currentTarget.setAttribute("aria-pressed", String(this.options[key]));
        this.zoom.clear();
        this.draw();
      },
    }, words[key]));
    this.reset = ptq.element("button", { type: "button", "data-reset": true, disabled: true, onclick: () => { this.zoom.clear(); this.draw(); } }, "Reset zoom");
    const saves = [["SVG", () => this.svgFile()], ["PNG", () => this.pngFile()], ["CSV", () => ptq.save(`${this.name}.csv`, ptq.data.files[this.spec.csv], "text/csv")]]
      .map(([kind, save]) => ptq.element("button", { type: "button", "data-save": kind.toLowerCase(), "aria-label": `Save ${this.spec.caption} as ${kind}`, onclick: save }, kind));
    return ptq.element("div", { class: "tools" }, ...toggles, this.reset, ptq.element("span", { class: "end" }, ...saves));
  }

  draw() {
    this.body.style.minHeight = "";
    const panels = this.spec.panels(this.options).filter((panel) => panel.points.length);
    this.width = this.body.clientWidth || 320;
    const columns = Math.max(1, Math.min(this.spec.columns || 3, panels.length, Math.floor(this.width / 275)));
    const { between, row } = ptq.SPACE, wide = (this.width - between * (columns - 1)) / columns, high = Math.min(270, Math.max(220, wide * 0.78));
    const svg = d3.create("svg").attr("role", "group").attr("aria-label", `${this.spec.caption}. ${ptq.KEYS}`);
    const focus = this.focus; // taking the old figure away takes the focus from it
    this.body.replaceChildren(svg.node());
    if (!panels.length) {
      svg.attr("viewBox", `0 0 ${this.width} 60`).append("text").attr("x", 10).attr("y", 30).text("Everything is switched off.");
      return;
    }
    panels.forEach((panel, i) => {
      const place = svg.append("g").attr("transform", `translate(${(i % columns) * (wide + between)},${Math.floor(i / columns) * (high + between)})`);
      this.panel(place, panel, wide, high, `${this.name}-${i}`);
    });
    const top = Math.ceil(panels.length / columns) * (high + between) + 6;
    const rows = this.legend(svg.append("g").attr("transform", `translate(6,${top})`), this.spec.legend(panels, this.options));
    svg.attr("viewBox", `0 0 ${this.width} ${top + rows * row}`);
    this.reset.disabled = !this.zoom.size;
    if (focus !== null) svg.selectAll(".panel").filter(function () { return this.dataset.key === focus; }).each(function () { this.focus({ preventScroll: true }); });
  }

  zoomKey(panel) { return this.spec.shared ? panel.x.key || "all" : panel.key; }

  panel(place, panel, wide, high, id) {
    const { left, right, top, bottom } = ptq.SPACE, w = wide - left - right, h = high - top - bottom;
    const ends = this.zoom.get(this.zoomKey(panel)) || { x: panel.x.domain, y: panel.y.domain };
    const x = ptq.scale(panel.x, ends.x, [0, w]), y = ptq.scale(panel.y, ends.y, [h, 0]);
    place.append("text").attr("class", "title").attr("x", left).attr("y", 14).text(ptq.fit(panel.title, w + right)).append("title").text(panel.title);
    const g = place.append("g").attr("transform", `translate(${left},${top})`);
    this.axes(g, panel, ends, x, y, w, h);
    g.append("clipPath").attr("id", id).append("rect").attr("x", -1).attr("y", -1).attr("width", w + 2).attr("height", h + 2);
    const inside = g.append("g").attr("clip-path", `url(#${id})`);
    this.marks(inside, panel, x, y, w, h);
    this.names(g, panel, x, y, w, h);
    panel.notes.forEach((note, i) => g.append("text").attr("class", "muted halo").attr("x", 5).attr("y", h - 6 - 13 * i).text(note));
    this.interact(g, panel, ends, x, y, w, h);
  }

  axes(g, panel, ends, x, y, w, h) {
    if (panel.y.kind === "symlog") {
      const zone = [panel.y.linear, -panel.y.linear].map((v) => Math.max(0, Math.min(h, y(v))));
      g.append("rect").attr("class", "zone").attr("width", w).attr("y", zone[0]).attr("height", zone[1] - zone[0]);
    }
    for (const [axis, scale, horizontal] of [[panel.x, x, true], [panel.y, y, false]]) {
      let last = Infinity;
      for (const value of ptq.ticks(axis, horizontal ? ends.x : ends.y, horizontal ? Math.max(3, w / 48) : 6)) {
        const at = scale(value);
        g.append("line").attr("class", "grid").attr(horizontal ? "x1" : "y1", at).attr(horizontal ? "x2" : "y2", at).attr(horizontal ? "y2" : "x2", horizontal ? h : w);
        if (!horizontal && last - at < 11) continue;
        last = at;
        const text = g.append("text").attr("class", "muted").text(axis.format(value));
        if (horizontal) text.attr("x", at).attr("y", h + 14).attr("text-anchor", "middle");
        else text.attr("x", -5).attr("y", at + 3.5).attr("text-anchor", "end");
      }
    }
    g.append("path").attr("class", "axis").attr("d", `M0,0V${h}H${w}`);
    g.append("text").attr("class", "muted").attr("x", w / 2).attr("y", h + 31).attr("text-anchor", "middle").text(panel.x.label);
    g.append("text").attr("class", "muted").attr("transform", `translate(-40,${h / 2}) rotate(-90)`).attr("text-anchor", "middle").text(panel.y.label);
  }

  marks(g, panel, x, y, w, h) {
    const paint = (part, one, what = "stroke") => (one.ink ? part.attr("class", "ink") : one.grey ? part.attr("class", "grey") : part.attr(what, one.colour));
    const finite = (v) => Number.isFinite(v), floor = panel.y.kind === "log" ? 1e-12 : -Infinity, up = (v) => y(Math.max(v, floor));
    for (const span of panel.spans) g.append("rect").attr("x", x(span.from)).attr("width", x(span.to) - x(span.from)).attr("height", h).attr("fill", span.colour).attr("opacity", 0.13);
    for (const area of panel.areas) {
      const shape = d3.area((p) => x(p.x), (p) => up(p.low), (p) => up(p.high)).defined((p) => finite(p.low) && finite(p.high));
      g.append("path").attr("d", shape(area.points)).attr("fill", area.colour).attr("opacity", area.opacity);
    }
    for (const mark of panel.marks) paint(g.append("line").attr("x1", x(mark.x)).attr("x2", x(mark.x)).attr("y2", h).attr("stroke-dasharray", mark.dash || null), mark);
    for (const line of panel.lines) {
      const shape = d3.line((p) => x(p.x), (p) => up(p.y)).defined((p) => finite(p.x) && finite(p.y));
      if (line.points.length) paint(g.append("path").attr("d", shape(line.points)).attr("fill", "none").attr("stroke-width", 1.1).attr("opacity", line.opacity || 1).attr("stroke-dasharray", line.dash || null), line);
    }
    for (const point of panel.points.filter((one) => !one.hover)) {
      const at = g.append("g").attr("class", "point").attr("transform", `translate(${x(point.x)},${up(point.y)})`);
      if (point.error > 0) {
        const [low, high] = [up(point.y - point.error), up(point.y + point.error)].map((v) => v - up(point.y));
        at.append("line").attr("y1", low).attr("y2", high).attr("stroke", point.colour);
      }
      const [shape, turn] = ptq.symbol(point.symbol, point.size), mark = at.append("path").attr("d", shape).attr("transform", turn || null);
      if (point.ring) mark.attr("class", "ink").attr("fill", "none");
      else if (point.hollow) mark.attr("class", "hollow").attr("stroke", point.colour).attr("stroke-width", 1.1);
      else mark.attr("fill", point.colour);
    }
  }

  // The bits at the end of each line: colour alone says nothing.
  names(g, panel, x, y, w, h) {
    let last = -Infinity;
    for (const label of d3.sort(panel.labels, (one) => y(one.y))) {
      const place = Math.max(y(label.y) + 3.5, last + 10);
      if (y(label.y) < -4 || y(label.y) > h + 4 || x(label.x) > w || place - y(label.y) > 30) continue;
      last = place;
      g.append("text").attr("class", "halo").attr("x", x(label.x) + 7).attr("y", place).text(label.text);
    }
  }

  interact(g, panel, ends, x, y, w, h) {
    const within = (p) => p.x >= ends.x[0] && p.x <= ends.x[1] && p.y >= ends.y[0] && p.y <= ends.y[1];
    const points = panel.points.filter(within), spoken = points.filter((p) => !p.hover || p.spoken);
    const measured = panel.points.filter((p) => !p.hover).length;
    const catcher = g.append("g").attr("class", "panel").attr("tabindex", 0).attr("role", "img").attr("data-key", panel.key)
      .attr("aria-label", `${panel.title}: ${panel.y.label} against ${panel.x.label}, ${measured} points. ${panel.notes.join(". ")}`);
    const rect = catcher.append("rect").attr("class", "catch").attr("width", w).attr("height", h);
    const ring = catcher.append("circle").attr("class", "at").attr("r", 7).attr("display", "none");
    const key = this.zoomKey(panel);
    const show = (point, event) => {
      ring.attr("display", point ? null : "none");
      if (!point) return ptq.tip(null);
      ring.attr("cx", x(point.x)).attr("cy", y(point.y));
      const box = ring.node().getBoundingClientRect();
      ptq.tip(point.text, box.left + box.width / 2, box.top + box.height / 2);
      if (!event) ptq.say(point.text.join(", "));
    };
    const near = (event) => {
      const [px, py] = d3.pointer(event, rect.node());
      const found = d3.least(points, (p) => Math.hypot(x(p.x) - px, y(p.y) - py) + (p.hover ? 6 : 0));
      return found && Math.hypot(x(found.x) - px, y(found.y) - py) < 26 ? found : null;
    };
    let start = null, box = null;
    const scaled = () => rect.node().getBoundingClientRect().width / w || 1;
    catcher.on("pointermove", (event) => {
      if (!start) return show(near(event), event);
      const [px, py] = d3.pointer(event, rect.node()).map((v, i) => Math.max(0, Math.min(i ? h : w, v)));
      box ??= catcher.append("rect").attr("class", "selection");
      box.attr("x", Math.min(px, start[0])).attr("y", Math.min(py, start[1])).attr("width", Math.abs(px - start[0])).attr("height", Math.abs(py - start[1]));
      start.end = [px, py];
    }).on("pointerleave", () => { if (!start) show(null); })
      .on("pointerdown", (event) => {
        if (event.pointerType === "touch") return show(near(event), event);
        start = d3.pointer(event, rect.node());
        rect.node().setPointerCapture(event.pointerId);
      })
      .on("pointerup pointercancel", () => {
        const from = start, to = start && start.end;
        start = null;
        if (box) box.remove();
        box = null;
        if (!to || Math.abs(to[0] - from[0]) * scaled() < 8 || Math.abs(to[1] - from[1]) * scaled() < 8) return;
        this.setZoom(key, { x: d3.sort([from[0], to[0]]).map(x.invert), y: d3.sort([from[1], to[1]], (v) => -v).map(y.invert) });
      })
      .on("dblclick", () => this.setZoom(key, null))
      .on("blur", () => { this.focus = null; show(null); })
      .on("focus", () => { if (catcher.node().matches(":focus-visible") && this.at.has(panel.key)) show(spoken[this.at.get(panel.key)]); })
      .on("keydown", (event) => this.key(event, { panel, key, spoken, ends, x, y, w, h, show }));
  }

  key(event, { panel, key, spoken, x, y, w, h, show }) {
    const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity };
    const now = this.at.get(panel.key), point = spoken[now];
    if (event.key in moves && spoken.length) {
      let next = now === undefined ? 0 : Math.max(0, Math.min(spoken.length - 1, now + moves[event.key]));
      if (point && event.key.match(/Up|Down/)) {
        const names = [...new Set(spoken.map((p) => p.series))], i = names.indexOf(point.series) + moves[event.key];
        const own = spoken.filter((p) => p.series === names[Math.max(0, Math.min(names.length - 1, i))]);
        next = spoken.indexOf(d3.least(own, (p) => Math.abs(x(p.x) - x(point.x))));
      }
      this.at.set(panel.key, next);
      show(spoken[next]);
    } else if (event.key === "+" || event.key === "=" || event.key === "-") {
      const factor = event.key === "-" ? 1 : 0.25, cx = point ? x(point.x) : w / 2, cy = point ? y(point.y) : h / 2;
      this.focus = panel.key;
      this.at.delete(panel.key);
      this.setZoom(key, { x: [cx - w * factor, cx + w * factor].map(x.invert), y: [cy + h * factor, cy - h * factor].map(y.invert) });
    } else if (event.key === "0" || event.key === "Escape") {
      this.focus = panel.key;
      this.setZoom(key, null);
    } else return;
    event.preventDefault();
  }

  setZoom(key, ends) {
    if (ends) this.zoom.set(key, ends); else this.zoom.delete(key);
    ptq.tip(null);
    this.draw();
  }

  legend(g, entries) {
    let x = 0, y = 0;
    for (const entry of entries) {
      const item = g.append("g"), part = entry.line || entry.area || entry.zone ? 26 : 14;
      const look = (mark) => (entry.ink ? mark.attr("class", "ink") : entry.colour ? mark.attr("stroke", entry.colour) : mark.attr("class", "grey"));
      if (entry.line) look(item.append("line").attr("x2", 20).attr("stroke-width", 1.3).attr("stroke-dasharray", entry.dash || null));
      if (entry.area) item.append("rect").attr("y", -5).attr("width", 20).attr("height", 10).attr("fill", "#7F7F7F").attr("opacity", entry.area);
      if (entry.zone) item.append("rect").attr("class", "zone").attr("y", -5).attr("width", 20).attr("height", 10);
      if (entry.symbol) {
        const [shape, turn] = ptq.symbol(entry.symbol, 4.2);
        const mark = item.append("path").attr("d", shape).attr("transform", `translate(${entry.line ? 10 : 5},0) ${turn}`);
        if (entry.ring) mark.attr("class", "ink").attr("fill", "none");
        else if (entry.colour) mark.attr("fill", entry.colour);
        else mark.attr("class", "ink").attr("fill", "var(--ink)");
      }
      item.append("text").attr("x", part).attr("y", 4).text(entry.text);
      const wide = part + ptq.textWidth(entry.text) + 16;
      if (x && x + wide > this.width - 8) { x = 0; y += ptq.SPACE.row; }
      item.attr("transform", `translate(${x},${y + 6})`);
      x += wide;
    }
    return y / ptq.SPACE.row + 1;
  }

  // The figure with its styles in attributes, which any program can read.
  svgText() {
    const own = this.body.querySelector("svg"), copy = own.cloneNode(true), parts = copy.querySelectorAll("*");
    own.querySelectorAll("*").forEach((from, i) => {
      const style = getComputedStyle(from);
      for (const name of ["fill", "stroke", "stroke-width", "opacity", "font-size", "font-weight", "paint-order"])
        if (style.getPropertyValue(name)) parts[i].setAttribute(name, style.getPropertyValue(name));
      for (const name of ["class", "tabindex", "role", "data-key", "aria-label"]) parts[i].removeAttribute(name);
    });
    copy.querySelectorAll("[r='7']").forEach((ring) => ring.remove());
    const [, , w, h] = own.getAttribute("viewBox").split(" ");
    Object.entries({ xmlns: "http://www.w3.org/2000/svg", width: w, height: h, "font-family": "Arial, sans-serif", "font-size": 11 }).forEach(([n, v]) => copy.setAttribute(n, v));
    const paper = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    Object.entries({ width: w, height: h, fill: getComputedStyle(document.body).backgroundColor }).forEach(([n, v]) => paper.setAttribute(n, v));
    copy.prepend(paper);
    return new XMLSerializer().serializeToString(copy);
  }
  svgFile() { ptq.save(`${this.name}.svg`, this.svgText(), "image/svg+xml"); }
  pngFile() {
    const image = new Image(), text = this.svgText();
    image.onload = () => {
      const canvas = ptq.element("canvas", { width: 2 * image.width, height: 2 * image.height });
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob((blob) => ptq.save(`${this.name}.png`, blob));
    };
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  }
};

// What is made only when it comes near the screen, or before printing: a page of a thousand measurements opens at once.
ptq.later = new Map();
ptq.make = (host) => {
  const make = ptq.later.get(host);
  ptq.later.delete(host);
  if (make) make();
};
ptq.makeAll = () => [...ptq.later.keys()].forEach(ptq.make);
ptq.whenNear = (() => {
  const observer = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) { observer.unobserve(target); ptq.make(target); }
  }, { rootMargin: "700px" });
  return (host, make) => { ptq.later.set(host, make); observer.observe(host); };
})();
addEventListener("beforeprint", ptq.makeAll);

ptq.KEYS = "Tab moves between panels; arrow keys read the points, plus and minus zoom, 0 shows everything; drag to zoom.";
ptq.textWidth = (() => {
  const context = document.createElement("canvas").getContext("2d");
  context.font = "11px Arial, sans-serif";
  return (text) => 1.06 * context.measureText(text).width;
})();
ptq.fit = (text, width) => {
  const room = width / 1.12;
  if (ptq.textWidth(text) <= room) return text;
  let kept = text;
  while (kept && ptq.textWidth(`${kept}…`) > room) kept = kept.slice(0, -1);
  return `${kept}…`;
};
ptq.tip = (lines, x, y) => {
  const tip = document.getElementById("tip");
  tip.hidden = !lines;
  if (!lines) return;
  tip.textContent = lines.join("\n");
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 12, innerWidth - width - 4))}px`;
  tip.style.top = `${y + 12 + height > innerHeight ? Math.max(4, y - height - 12) : y + 12}px`;
};
ptq.say = (text) => { document.getElementById("spoken").textContent = text; };
ptq.save = (name, content, type) => {
  const address = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type: `${type};charset=utf-8` }));
  const link = ptq.element("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
};
