"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const number = (value) => (value === null || value === undefined ? "-" : d3.format(".4~g")(value));
  const SYMBOLS = ["circle", "square", "triangle", "diamond2", "star", "cross", "hexagon", "times"];

  /* Elements without markup in their texts: names stay text. */
  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  function figure(caption, label, ...plots) {
    for (const plot of plots) plot.setAttribute("aria-hidden", "true");
    const picture = element("div", { class: "pair", role: "img", "aria-label": label }, ...plots);
    return element("figure", {}, element("figcaption", {}, caption), picture);
  }

  /* ---- Overview ---- */
  const rows = data.rows.map((row) => ({ ...row, ...row.overview }));
  const kinds = d3.rollups(rows, (group) => group.length, (row) => row.role)
    .sort((a, b) => b[1] - a[1]).map((entry) => entry[0]);
  const shown = kinds.slice(0, kinds.length > SYMBOLS.length ? SYMBOLS.length - 1 : SYMBOLS.length);
  const groups = kinds.length > shown.length ? [...shown, "other kinds"] : shown;
  for (const row of rows) row.group = shown.includes(row.role) ? row.role : "other kinds";
  const colour = (group) => `var(--c${groups.indexOf(group)})`;
  const symbol = (group) => SYMBOLS[groups.indexOf(group)];

  function overview() {
    const place = find("figures");
    if (!place) return;
    const legend = find("legend");
    legend.replaceChildren(...groups.map((group) => {
      const path = d3.symbol(d3[SYMBOL_OF[symbol(group)]], 60)();
      const svg = d3.create("svg").attr("width", 14).attr("height", 14).attr("aria-hidden", "true")
        .attr("viewBox", "-7 -7 14 14");
      svg.append("path").attr("d", path).style("fill", colour(group)).style("stroke", colour(group));
      return element("li", {}, svg.node(), group);
    }));
    const width = Math.max(260, place.clientWidth >= 1000 ? (place.clientWidth - 32) / 3 : Math.min(place.clientWidth, 620));
    place.replaceChildren(
      trend("Spikes: singular values beyond the noise", "spikes", width, { type: "symlog", label: null, tickFormat: "~s" }),
      trend("Share of the squared weights left in the bulk", "noise", width, { domain: [0, 100], percent: true, label: null }),
      trend("Share of parameters that a split saves", "saving", width, { percent: true, label: null, nice: true, zero: true }),
    );
  }

  const SYMBOL_OF = {
    circle: "symbolCircle", square: "symbolSquare", triangle: "symbolTriangle", diamond2: "symbolDiamond2",
    star: "symbolStar", cross: "symbolCross", hexagon: "symbolWye", times: "symbolTimes",
  };

  function trend(caption, key, width, y) {
    const drawn = rows.filter((row) => row[key] !== null);
    const last = data.blocks.length - 1;
    const each = (width - 70) / Math.max(last, 1); /* pixels between two blocks */
    const room = (i, j) => (3.5 * (data.blocks[i].length + data.blocks[j].length) + 10) / each;
    const steps = d3.range(1, last + 1);
    const step = steps.find((k) => d3.range(k, last + 1, k).every((i) => room(i - k, i) <= k)) ?? Math.max(last, 1);
    const ticks = d3.range(0, last + 1, step);
    const style = { x: "depth", y: key, symbol: (row) => symbol(row.group), stroke: (row) => colour(row.group), r: 3.2 };
    const plot = Plot.plot({
      width, height: 220, marginLeft: 46, marginRight: 24, marginBottom: 34, style: { background: "transparent" },
      x: { domain: [-0.3, Math.max(data.blocks.length - 0.7, 0.3)], ticks, tickFormat: (i) => data.blocks[i], label: "block" },
      y: { grid: true, ...y },
      symbol: { type: "identity" },
      marks: [
        drawn.length ? null : Plot.text(["not known in this report"], { frameAnchor: "middle" }),
        Plot.lineY(drawn, Plot.groupX({ y: "mean" }, { x: "depth", y: key, z: "group", stroke: (row) => colour(row.group), strokeOpacity: 0.6 })),
        Plot.dot(drawn, { ...style, fill: (row) => (row.passes ? colour(row.group) : "var(--page)") }),
        Plot.tip(drawn, Plot.pointer({
          x: "depth", y: key, fill: "var(--page)",
          title: (row) => `${row.name}\n${row.size}, ${row.verdict}\n${number(row[key])}`,
        })),
      ],
    });
    const kindWords = groups.length > 4 ? `${groups.length} kinds of layers` : groups.join(", ");
    return figure(caption, `${caption}, by depth, for ${kindWords}; the table has the numbers.`, plot);
  }

  /* ---- One matrix ---- */
  const quantiles = (values) => values.map((x, i) => ({ x, share: (i + 0.5) / values.length }));

  function key(style, colour, words) {
    const mark = element("b", { class: style, "aria-hidden": "true" });
    mark.style.color = colour;
    if (style === "box") mark.style.background = colour;
    return element("li", {}, mark, words);
  }

  function density(curves, width) {
    const [low, high] = curves.view;
    const step = (high - low) / curves.bars.length;
    const bars = curves.bars.map((height, i) => ({ x1: low + i * step, x2: low + (i + 1) * step, height }));
    const beyond = curves.spikes.filter((value) => value > high);
    const law = curves.law;
    const paint = curves.accepted ? "var(--law)" : "var(--refused)";
    const side = beyond.length ? Math.max(90, width * 0.24) : 0;
    const common = { height: 210, style: { background: "transparent" }, marginBottom: 36 };
    const main = Plot.plot({
      ...common, width: width - side, marginLeft: 46, marginRight: 8,
      x: { domain: [low, high], label: "eigenvalue s² / n", ticks: 5 },
      y: { domain: [0, 1.08 * (curves.top || 1)], label: "density", ticks: 4 },
      marks: [
        Plot.rectY(bars, { x1: "x1", x2: "x2", y: "height", fill: "var(--bars)", insetLeft: 0.5 }),
        law && Plot.line(d3.zip(law.x, law.density), { stroke: paint, strokeWidth: 2.2, strokeDasharray: curves.accepted ? null : "6,4", clip: true }),
        law && Plot.ruleX([law.threshold], { stroke: "var(--threshold)", strokeDasharray: "7,2,1.5,2", strokeWidth: 1.6 }),
        Plot.tickX(curves.spikes.filter((v) => v <= high), { x: (v) => v, stroke: "var(--spike)", insetTop: 158, strokeWidth: 1.6 }),
        Plot.ruleY([0]),
      ],
    });
    const plots = [main];
    if (beyond.length) {
      const top = d3.max(beyond);
      plots.push(Plot.plot({
        ...common, width: side, marginLeft: 6, marginRight: 14,
        x: { type: "log", domain: [high, Math.max(top * 1.15, high * 1.5)], label: "beyond, log", ticks: [top], tickFormat: number },
        y: { axis: null, domain: [0, 1] },
        marks: [Plot.ruleX(beyond, { y1: 0, y2: 0.3, stroke: "var(--spike)", strokeWidth: 1.6 }), Plot.ruleY([0], { strokeDasharray: "2,3" })],
      }));
    }
    const keys = [key("box", "var(--bars)", `eigenvalues (${curves.p})`)];
    if (law) {
      keys.push(key(curves.accepted ? "" : "dashed", paint, curves.accepted ? "law of noise" : curves.estimated ? "law of noise, not tested" : "law of noise, refused"));
      keys.push(key("dotted", "var(--threshold)", `threshold ${number(law.threshold)}`));
    }
    if (curves.n_spikes) keys.push(key("", "var(--spike)", `spikes (${curves.n_spikes}), the largest at ${number(curves.spikes[0])}`));
    const label = `Histogram of ${curves.p} eigenvalues` + (law
      ? `; law of noise from ${number(law.lower)} to ${number(law.upper)}, ${curves.accepted ? "accepted" : curves.estimated ? "not tested" : "refused"}; ${curves.n_spikes} beyond the threshold ${number(law.threshold)}.`
      : "; no law was fitted.");
    const made = figure(curves.title, label, ...plots);
    made.append(element("ul", { class: "keys", role: "list" }, ...keys));
    if (curves.says) made.append(element("p", { class: "note" }, curves.says));
    return made;
  }

  function shares(curves, width) {
    const law = curves.law, gap = curves.gap;
    const paint = curves.accepted ? "var(--law)" : "var(--refused)";
    const right = law.upper + 0.08 * (law.upper - law.lower);
    const plot = Plot.plot({
      width, height: 210, marginLeft: 46, marginBottom: 36, style: { background: "transparent" },
      x: { domain: [Math.max(0, law.lower - 0.08 * (law.upper - law.lower)), right], label: "eigenvalue s² / n", ticks: 5 },
      y: { domain: [0, 1], label: "share of the bulk at or below", ticks: 5 },
      marks: [
        Plot.line(d3.zip(law.x, law.share), { stroke: paint, strokeWidth: 2.2, strokeDasharray: curves.accepted ? null : "6,4", clip: true }),
        curves.flips && Plot.line(quantiles(curves.flips), { x: "x", y: "share", stroke: "var(--flips)", strokeWidth: 3, strokeOpacity: 0.6, clip: true }),
        Plot.line(quantiles(curves.bulk), { x: "x", y: "share", stroke: "var(--threshold)", strokeWidth: 1.6, strokeDasharray: "2,2", clip: true }),
        gap && Plot.ruleX([gap], { x: "x", y1: "bulk", y2: "law", strokeWidth: 2.5 }),
        gap && Plot.text([gap], { x: "x", y: (g) => (g.bulk + g.law) / 2, dx: 7, textAnchor: "start", text: (g) => `largest gap ${number(Math.abs(g.bulk - g.law))}` }),
        Plot.ruleY([0]),
      ],
    });
    const keys = [key("dotted", "var(--threshold)", "bulk"), key(curves.accepted ? "" : "dashed", paint, "law of noise")];
    if (curves.flips) keys.push(key("", "var(--flips)", "bulk with random signs"));
    const made = figure("Distribution functions", "Distribution functions of the bulk and of the law of noise"
      + (gap ? `, largest gap ${number(Math.abs(gap.bulk - gap.law))} at ${number(gap.x)}.` : "."), plot);
    made.append(element("ul", { class: "keys", role: "list" }, ...keys));
    return made;
  }

  function scree(curves, width) {
    const points = d3.zip(curves.scree.rank, curves.scree.value).filter((point) => point[1] > 0);
    const plot = Plot.plot({
      width, height: 210, marginLeft: 50, marginBottom: 36, style: { background: "transparent" },
      x: { type: "log", label: "rank", ticks: 5, tickFormat: "~s" },
      y: { type: "log", label: "eigenvalue", ticks: 5, tickFormat: ".2~g" },
      marks: [
        curves.law && Plot.ruleY([curves.law.threshold], { stroke: "var(--threshold)", strokeDasharray: "7,2,1.5,2", strokeWidth: 1.6 }),
        Plot.dot(points, {
          x: "0", y: "1", r: 2.8, fill: (point) => (point[0] <= curves.n_spikes ? "var(--spike)" : "var(--bars)"),
          symbol: (point) => (point[0] <= curves.n_spikes ? "diamond" : "circle"),
        }),
      ],
      symbol: { type: "identity" },
    });
    return figure("Eigenvalues by rank", `Eigenvalues by rank on logarithmic axes, ${curves.n_spikes} of them spikes.`, plot);
  }

  function detail(index) {
    const row = data.rows[index];
    const cell = element("td", { role: "cell", colspan: document.querySelectorAll("#table thead th").length });
    const made = element("tr", { class: "detail", role: "row", id: `detail-${index}` }, cell);
    const value = Object.fromEntries(data.columns.map((column, i) => [column, row.values[i]]));
    const words = [
      value.verdict && `${value.verdict}: ${value.verdict_reason}.`, value.noise_remarks && `${value.noise_remarks}.`,
      value.reason && `${value.reason}.`, value.note && `${value.note}.`,
    ].filter(Boolean);
    cell.append(...words.map((text) => element("p", { class: "words" }, text[0].toUpperCase() + text.slice(1))));
    const charts = element("div", { class: "charts" });
    cell.append(charts);
    if (!row.curves.length) cell.append(element("p", { class: "note" }, "The spectrum is not in this report, which was read from a file of numbers."));
    const pairs = data.columns.map((column, i) => [column, row.values[i]]).filter((pair) => pair[1] !== "");
    cell.append(element("details", {}, element("summary", {}, "All numbers"),
      element("dl", { class: "pairs" }, ...pairs.map(([name, text]) =>
        element("div", {}, element("dt", {}, name), element("dd", {}, text))))));
    return made;
  }

  function draw(row, index) {
    const place = row.querySelector(".charts");
    const whole = place.clientWidth || 600;
    const columns = Math.max(1, Math.floor((whole + 24) / (352 + 24)));
    const width = Math.max(240, Math.floor((whole - 24 * (columns - 1)) / columns));
    const made = [];
    for (const [i, curves] of data.rows[index].curves.entries()) {
      made.push(density(curves, width));
      if (curves.bulk) made.push(shares(curves, width));
      if (i === 0 && curves.scree) made.push(scree(curves, width));
    }
    place.replaceChildren(...made);
  }

  /* ---- Table ---- */
  const table = find("table");
  const lines = table ? [...table.tBodies[0].rows] : [];
  const indexOf = (line) => Number(line.dataset.row);
  const details = new Map();

  function open(line, wanted) {
    const button = line.querySelector(".open");
    let below = details.get(line);
    if (!below && wanted) {
      below = detail(indexOf(line));
      details.set(line, below);
      button.setAttribute("aria-controls", below.id);
      line.after(below);
    }
    button.setAttribute("aria-expanded", String(wanted));
    if (below) {
      below.hidden = !wanted || line.hidden;
      if (wanted && !below.hidden) draw(below, indexOf(line));
    }
  }

  const values = []; /* by column, once it was sorted by */
  function valuesIn(column) {
    values[column] ??= new Map(lines.map((line) => [line, valueIn(line, column)]));
    return values[column];
  }

  const collator = new Intl.Collator("en", { numeric: true });
  function valueIn(line, column) {
    const cell = line.cells[column];
    const given = cell.dataset.value;
    if (given === undefined) return cell.textContent.trim();
    return given === "" ? null : Number.isNaN(Number(given)) ? given : Number(given);
  }

  function sort(column, ascending) {
    const keyed = [...valuesIn(column)].map(([line, value]) => [value, line]);
    keyed.sort(([a, one], [b, other]) => {
      if (a === null || b === null) return (a === null) - (b === null) || indexOf(one) - indexOf(other);
      const order = typeof a === "number" && typeof b === "number" ? a - b : collator.compare(a, b);
      return (ascending ? order : -order) || indexOf(one) - indexOf(other);
    });
    table.tBodies[0].replaceChildren(...keyed.flatMap(([, line]) =>
      (details.has(line) ? [line, details.get(line)] : [line])));
  }

  function filter() {
    const [name, role, verdict] = ["by-name", "by-role", "by-verdict"].map(find);
    let pattern = null;
    try {
      pattern = new RegExp(name.value, "iu");
      name.removeAttribute("aria-invalid");
    } catch {
      name.setAttribute("aria-invalid", "true");
      find("shown").textContent = "The name is not a regular expression yet; nothing was filtered by it.";
    }
    let count = 0;
    for (const line of lines) {
      const fits = (!pattern || pattern.test(data.rows[indexOf(line)].name))
        && (!role.value || line.dataset.role === role.value)
        && (!verdict || !verdict.value || line.dataset.verdict === verdict.value);
      line.hidden = !fits;
      count += fits;
      const below = details.get(line);
      if (below) below.hidden = !fits || line.querySelector(".open").getAttribute("aria-expanded") !== "true";
    }
    if (pattern) find("shown").textContent = `${count} of ${lines.length} shown`;
  }

  async function copy(what, head) {
    const body = [...table.tBodies[0].rows].filter((line) => line.dataset.row && !line.hidden)
      .map((line) => data.rows[indexOf(line)][what]);
    const words = [head, ...body, ""].join("\n");
    try {
      await navigator.clipboard.writeText(words);
    } catch { /* a page of a file has no clipboard in some browsers */
      const area = element("textarea", { "aria-label": "To be copied" });
      area.value = words;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    find("copied").textContent = `${body.length} rows copied`;
    setTimeout(() => { find("copied").textContent = ""; }, 2500);
  }

  if (table) {
    table.addEventListener("click", (event) => {
      const heading = event.target.closest(".sort");
      if (heading) {
        const cell = heading.closest("th");
        const ascending = cell.getAttribute("aria-sort") !== "ascending";
        for (const other of table.querySelectorAll("[aria-sort]")) other.setAttribute("aria-sort", "none");
        cell.setAttribute("aria-sort", ascending ? "ascending" : "descending");
        sort(cell.cellIndex, ascending);
      }
      const opener = event.target.closest(".open");
      if (opener) open(opener.closest("tr"), opener.getAttribute("aria-expanded") !== "true");
    });
    find("filters").addEventListener("input", filter);
    find("filters").addEventListener("submit", (event) => event.preventDefault());
    find("copy-markdown").addEventListener("click", () => copy("markdown", data.markdown));
    find("copy-csv").addEventListener("click", () => copy("csv", data.csv));
    filter(); /* a browser keeps what was in the fields when a page is opened again */
    if (lines.length === 1) open(lines[0], true);
  }
  overview();
  let width = document.body.clientWidth, waiting = 0;
  window.addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      if (document.body.clientWidth === width) return;
      width = document.body.clientWidth;
      overview();
      for (const [line, below] of details) if (!below.hidden) draw(below, indexOf(line));
    }, 150);
  });
  document.documentElement.dataset.ready = "yes";
})();
