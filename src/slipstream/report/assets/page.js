/* Draws the charts of a page, and sorts, copies and saves what it shows. No framework. */
"use strict";

const Page = (() => {
  const settings = JSON.parse(document.getElementById("settings").textContent);
  const hidden = new Set(); // numbers of the runs that are switched off
  const light = { ink: "#1d2329", quiet: "#5b6570", grid: "#e8ecef", panel: "#ffffff", hover: "#ffffff" };
  const dark = { ink: "#e7ebee", quiet: "#9aa6b1", grid: "#2a3239", panel: "#181d22", hover: "#242c33" };
  const fonts = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica Neue, Arial, sans-serif";
  const coarse = matchMedia("(pointer: coarse)").matches;
  let printing = false;

  /* ---- colours ---- */

  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const themes = ["system", "light", "dark"];
  let choice = "system";
  const isDark = () => !printing && (choice === "dark" || (choice === "system" && systemDark.matches));
  const palette = () => (isDark() ? dark : light);
  const shade = (colour) => (isDark() && settings.on_dark[colour]) || colour;
  const clear = (colour, opacity) => {
    const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
    return `rgba(${r},${g},${b},${opacity})`;
  };

  /* ---- text ---- */

  // Plotly reads a few tags in labels: names are shown as they are written.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const shorten = (text, most) => {
    if (text.length <= most) return text;
    const half = Math.floor((most - 1) / 2);
    return text.slice(0, most - 1 - half) + "…" + text.slice(text.length - half);
  };
  const short = (value) => (value === null || value === undefined ? "–" : String(Number(value.toPrecision(4))));
  const canvas = document.createElement("canvas").getContext("2d");
  const widthOf = (text, size) => {
    canvas.font = `${size}px ${fonts}`;
    return canvas.measureText(text).width;
  };

  /* ---- charts: from content to what Plotly draws ---- */

  const axis = (title, extra = {}) => ({
    title: { text: plain(title), font: { size: 12, color: palette().quiet }, standoff: 8 },
    gridcolor: palette().grid, linecolor: palette().grid, zeroline: false, automargin: true,
    tickfont: { size: 11, color: palette().quiet }, ...extra,
  });

  const layout = (height, extra) => ({
    height, autosize: true, showlegend: false,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: fonts, size: 12, color: palette().ink },
    margin: { l: 8, r: 12, t: coarse ? 30 : 8, b: 8 },
    dragmode: coarse ? false : "zoom", // a finger scrolls the page
    modebar: { bgcolor: "rgba(0,0,0,0)", color: palette().quiet, activecolor: palette().ink },
    hoverlabel: {
      bgcolor: palette().hover, bordercolor: palette().grid, align: "left",
      font: { family: fonts, size: 12, color: palette().ink },
    },
    ...extra,
  });

  const usual = (width) => (printing ? 250 : width < 520 ? 290 : 350);
  const visible = (chart) => chart.series.filter((one) => one.run === null || !hidden.has(one.run));

  const rule = (where) => ({ type: "line", line: { color: palette().quiet, width: 1, dash: "dot" }, ...where });
  const column = (x) => rule({ x0: x, x1: x, y0: 0, y1: 1, yref: "paper" });
  const row = (y) => rule({ y0: y, y1: y, x0: 0, x1: 1, xref: "paper" });

  function lines(chart, width, size = {}) {
    if (chart.square) return path(chart, width);
    const traces = [];
    const series = visible(chart);
    for (const one of series) {
      const colour = shade(one.colour);
      if (one.low.length) {
        const edge = { x: one.x, mode: "lines", line: { width: 0 }, hoverinfo: "skip" };
        traces.push({ ...edge, y: one.low });
        traces.push({ ...edge, y: one.high, fill: "tonexty", fillcolor: clear(colour, 0.16) });
      }
      traces.push({
        x: one.x, y: one.y, mode: one.x.length < 3 && !one.dashed ? "lines+markers" : "lines",
        line: { color: colour, width: 2, dash: one.dashed ? "dash" : "solid" },
        name: plain(one.name), hovertemplate: one.name ? "%{y:.4~g}" : "%{y:.4~g}<extra></extra>",
      });
    }
    const height = size.height || usual(width);
    const drawn = layout(height, {
      hovermode: "x unified", hoverdistance: -1, // the nearest snapshot, however far
      // Margins that fit themselves would draw everything twice.
      margin: size.bare ? { l: 32, r: 10, t: 8, b: 22 } : { l: 64, r: 12, t: coarse ? 30 : 8, b: 44 },
      xaxis: axis(size.bare ? "" : chart.x_label, { automargin: false, showgrid: false, showline: true, ticks: "outside", nticks: size.bare ? 4 : 0 }),
      yaxis: axis(size.bare ? "" : chart.y_label, { automargin: false, tickformat: "~g", nticks: size.bare ? 5 : 0 }),
    });
    if (chart.log) Object.assign(drawn.yaxis, { type: "log", dtick: decadesOf(series) > 3 ? 1 : "D2" });
    const places = series.flatMap((one) => one.x);
    if (places.length > 1) drawn.xaxis.range = [Math.min(...places), Math.max(...places)];
    const range = size.range || chart.y_range;
    if (range) drawn.yaxis.range = range;
    drawn.shapes = chart.borders.map(column);
    label(chart, series, drawn, width, height);
    if (chart.marks.length) {
      const [x, y] = [chart.marks.map((m) => m.x), chart.marks.map((m) => m.y)];
      const named = { text: chart.marks.map((m) => plain(m.name)), textposition: "top left", hoverinfo: "skip" };
      traces.push({ x, y, mode: "markers+text", marker: { size: 7, color: palette().ink }, ...named });
    }
    return { traces, drawn };
  }

  function decadesOf(series) {
    const values = series.flatMap((one) => one.y).filter((v) => v > 0);
    return Math.log10(Math.max(...values) / Math.min(...values));
  }

  /* Writes each name beside the end of its line, moved apart where lines end close together. */
  function label(chart, series, drawn, width, height) {
    const named = series.filter((one) => one.name && one.y.length);
    if (!named.length) return;
    const room = Math.min(width * 0.34, Math.max(...named.map((one) => widthOf(one.name, 12))) + 14);
    const most = Math.max(4, Math.floor(room / 6.6));
    const scale = chart.log ? (value) => Math.log10(value) : (value) => value;
    const all = series.flatMap((one) => [...one.y, ...one.low, ...one.high]).filter((v) => v !== null).map(scale);
    const [low, high] = [Math.min(...all), Math.max(...all)];
    const span = high - low || 1;
    const pixels = (height - 75) / 1.1;
    const ends = named.map((one) => {
      const at = one.y.findLastIndex((value) => value !== null);
      return { one, x: one.x[Math.max(at, 0)], y: scale(one.y[Math.max(at, 0)] ?? 1) };
    }).sort((a, b) => a.y - b.y);
    const gap = 14;
    let last = -Infinity;
    for (const end of ends) {
      end.at = Math.max(((end.y - low) / span) * pixels, last + gap);
      last = end.at;
    }
    let top = pixels + 4;
    for (const end of [...ends].reverse()) {
      end.at = Math.min(end.at, top);
      top = end.at - gap;
    }
    drawn.annotations = ends.map((end) => ({
      x: end.x, y: end.y, xref: "x", yref: "y", xanchor: "left", yanchor: "middle", showarrow: false,
      xshift: 5, yshift: end.at - ((end.y - low) / span) * pixels,
      text: plain(shorten(end.one.name, most)), font: { size: 12, color: shade(end.one.colour) },
    }));
    drawn.margin.r = room;
  }

  function path(chart, width) {
    const traces = visible(chart).map((one) => ({
      x: one.x, y: one.y, mode: "lines+markers",
      line: { color: clear(shade(one.colour), 0.45), width: 1.5 },
      marker: {
        size: one.x.map((_, n) => (n === 0 || n === one.x.length - 1 ? 10 : 5)), color: shade(one.colour), opacity: 1,
        symbol: one.x.map((_, n) => (n === 0 ? "diamond" : "circle")), line: { width: 0 },
      },
      customdata: one.steps, hovertemplate: `%{customdata}<br>%{x:.3~g}, %{y:.3~g}<extra></extra>`,
    }));
    const drawn = layout(usual(width), {
      hovermode: "closest",
      margin: { l: 52, r: 12, t: coarse ? 30 : 8, b: 44 }, // equal scales and automatic margins chase each other
      xaxis: axis(chart.x_label, { automargin: false }),
      yaxis: axis(chart.y_label, { automargin: false, scaleanchor: "x" }),
    });
    drawn.annotations = visible(chart).flatMap((one) => [
      [0, "start"], [one.x.length - 1, one.name],
    ].map(([at, text]) => ({
      x: one.x[at], y: one.y[at], text: plain(text), showarrow: false, yshift: 14,
      font: { size: 12, color: palette().ink },
    })));
    return { traces, drawn };
  }

  /* ---- colours that mean a value: brighter is more ---- */

  const scales = { linear: (v) => v, log: (v) => Math.log10(v), root: (v, low) => Math.sqrt(Math.max(v - low, 0)) };

  /* What Plotly colours by, and the bar beside it with the ticks that the chart brings. */
  function coloured(colours, values, empty, width) {
    const at = (v) => scales[colours.scale](v, colours.low);
    const [low, high] = [at(colours.low), at(colours.high)];
    const shown = (v) => (v === null ? empty && high : colours.scale === "log" && v <= 0 ? null : at(v));
    const narrow = width < 520; // the bar lies above, with room for a label every 45 pixels
    const every = narrow ? Math.ceil((colours.ticks.length * 45) / (width * 0.7)) : 1;
    const ticks = colours.ticks.filter((_, n) => n % every === 0);
    const bar = {
      title: { text: plain(colours.label), side: narrow ? "top" : "right", font: { size: 11, color: palette().quiet } },
      thickness: narrow ? 8 : 10, outlinewidth: 0, tickfont: { size: 11, color: palette().quiet }, len: 1,
      tickvals: ticks.map(at), ticktext: ticks.map(short),
      ...(narrow ? { orientation: "h", y: 1.02, yanchor: "bottom", xpad: 0 } : { ypad: 0 }),
    };
    const z = values.map((line) => line.map(shown));
    return { z, zmin: low, zmax: high, zauto: false, colorscale: "Viridis", colorbar: bar };
  }

  function heatmap(chart, width) {
    const numeric = typeof chart.columns[0] === "number";
    const most = Math.max(8, Math.floor((width * 0.3) / 6.2));
    const rows = chart.rows.map((_, n) => n);
    const named = rows.filter((n) => chart.rows[n]);
    const ticks = named.filter((_, n) => n % Math.ceil(named.length / 45) === 0);
    const traces = [{
      type: "heatmap", x: chart.columns, y: rows, ...coloured(chart.colours, chart.values, null, width),
      hoverongaps: false, xgap: numeric ? 0 : 1, ygap: rows.length < 45 ? 1 : 0,
      customdata: chart.values.map((line, n) => line.map((v) => `${plain(chart.rows[n])}<br>${short(v)}`)),
      text: chart.values.map((line) => line.map((v) => (v === null ? "" : v.toFixed(2)))),
      texttemplate: chart.written ? "%{text}" : "", showscale: !chart.written,
      hovertemplate: `${plain(chart.x_label)} %{x}<br>%{customdata}<extra></extra>`,
    }];
    const drawn = layout(chart.square ? Math.min(width, 560) : Math.min(900, Math.max(90 + rows.length * 20, usual(width))), {
      hovermode: "closest",
      shapes: [...chart.borders.map(column), ...chart.row_borders.map(row)],
      xaxis: axis(chart.x_label, { showgrid: false, ...(numeric ? {} : { type: "category" }) }),
      yaxis: axis(chart.square ? chart.y_label : "", {
        showgrid: false, range: [rows.length - 0.5, -0.5], tickvals: ticks, // from the top
        ticktext: ticks.map((n) => plain(shorten(chart.rows[n], most)) + " "),
      }),
    });
    return { traces, drawn };
  }

  function contours(chart, width) {
    const traces = [{
      type: "contour", x: chart.x, y: chart.y, ...coloured(chart.colours, chart.values, true, width), ncontours: 24,
      contours: { coloring: "heatmap" }, line: { width: 0.5, color: "rgba(255,255,255,.35)" },
      text: chart.values.map((line) => line.map(short)),
      hovertemplate: `${plain(chart.colours.label)} %{text}<extra></extra>`,
    }];
    if (chart.path.length) {
      const [x, y] = [chart.path.map((p) => p[0]), chart.path.map((p) => p[1])];
      traces.push({ x, y, mode: "lines", line: { color: "#000", width: 4 }, opacity: 0.35, hoverinfo: "skip" });
      traces.push({
        x, y, mode: "lines+markers", line: { color: "#fff", width: 2 }, marker: { size: 4, color: "#fff" },
        customdata: chart.steps.length ? chart.steps : x.map((_, n) => n), hovertemplate: "%{customdata}<extra></extra>",
      });
    }
    const ends = (values) => [values[0], values[values.length - 1]];
    const drawn = layout(usual(width) + 20, {
      hovermode: "closest",
      xaxis: axis(chart.x_label, { showgrid: false, range: ends(chart.x), constrain: "domain" }),
      yaxis: axis(chart.y_label, { showgrid: false, range: ends(chart.y), ...(chart.square ? { scaleanchor: "x", constrain: "domain" } : {}) }),
    });
    traces.push({
      x: chart.marks.map((m) => m.x), y: chart.marks.map((m) => m.y), mode: "markers", hoverinfo: "skip",
      marker: { size: 9, color: "#fff", line: { color: "#000", width: 1 }, symbol: chart.marks.map((_, n) => (n ? "star" : "diamond")) },
    });
    drawn.annotations = chart.marks.map((mark) => ({
      x: mark.x, y: mark.y, text: plain(mark.name), showarrow: false, yshift: 15,
      font: { size: 12, color: "#fff" }, bgcolor: "rgba(0,0,0,.45)", borderpad: 2,
    }));
    return { traces, drawn };
  }

  /* ---- drawing ---- */

  const makers = { lines, heatmap, contours };
  const content = new WeakMap(); // figure to its content

  function chartOf(figure) {
    if (!content.has(figure)) content.set(figure, JSON.parse(figure.querySelector("script").textContent));
    return content.get(figure);
  }

  function draw(figure) {
    const chart = chartOf(figure);
    for (const place of figure.querySelectorAll(".plot")) {
      const width = printing ? (figure.matches(".wide") ? 650 : 305) : place.clientWidth; // of A4
      if (!width) continue; // not on the screen
      const one = chart.kind === "panels" ? chart.panels[place.dataset.panel] : chart;
      const size = chart.kind === "panels" ? { height: 150, bare: true, range: common(chart) } : {};
      const inside = printing && chart.kind === "panels" ? 140 : width;
      const { traces, drawn } = makers[one.kind](one, inside, size);
      if (printing) Object.assign(drawn, { width: inside, autosize: false });
      // Not `react`: it forgets the ranges of axes where nothing but a colour has changed.
      Plotly.newPlot(place, traces, drawn, {
        displaylogo: false, responsive: false, displayModeBar: chart.kind === "panels" ? false : "hover",
        modeBarButtons: [["toImage", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
        toImageButtonOptions: { format: "svg", filename: fileName(chart.title) },
      });
      place.setAttribute("role", "img");
      place.setAttribute("aria-label", `${one.title}. ${chart.reading}`);
    }
    figure.dataset.drawn = "";
  }

  function common(chart) {
    const all = chart.panels.flatMap((panel) => panel.series.flatMap((s) => [...s.y, ...s.low, ...s.high])).filter((v) => v !== null);
    const [low, high] = [Math.min(...all), Math.max(...all)];
    const margin = (high - low) * 0.05 || 1;
    return [low - margin, high + margin];
  }

  const figures = () => [...document.querySelectorAll("figure.chart")];
  const redraw = () => figures().filter((figure) => figure.isConnected && !figure.hidden && "drawn" in figure.dataset).forEach(draw);

  // Charts are drawn when they come near the screen; printing draws all.
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting || "drawn" in entry.target.dataset) continue;
      watcher.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "600px" });

  /* ---- data out ---- */

  const fileName = (title) => title.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "") || "data";
  const quote = (value) => (/[",\n]/.test(value) ? `"${value.replace(/"/g, '""')}"` : value);
  const csv = (rows) => rows.map((row) => row.map((v) => quote(v === null || v === undefined ? "" : String(v))).join(",")).join("\n") + "\n";

  function rowsOf(chart) {
    if (chart.kind === "heatmap") {
      const cells = chart.rows.flatMap((name, n) => chart.columns.map((x, m) => [name, x, chart.values[n][m]]));
      return [[chart.y_label, chart.x_label, chart.colours.label], ...cells];
    }
    if (chart.kind === "contours") {
      const cells = chart.y.flatMap((y, n) => chart.x.map((x, m) => ["", x, y, chart.values[n][m]]));
      return [["path", "x", "y", chart.colours.label], ...cells, ...chart.path.map((p, n) => [chart.steps[n] ?? n, ...p, ""])];
    }
    const parts = chart.kind === "panels" ? chart.panels : [chart];
    const points = parts.flatMap((part) => part.series.flatMap((one) => one.x.map((x, n) => [
      one.name || part.title, ...(one.steps.length ? [one.steps[n]] : []), x, one.y[n], one.low[n], one.high[n],
    ])));
    const steps = parts.some((part) => part.series.some((one) => one.steps.length)) ? ["step"] : [];
    return [["series", ...steps, parts[0].x_label, parts[0].y_label, "low", "high"], ...points];
  }

  const tableRows = (figure) => [...figure.querySelectorAll("tr")].map((row) => [...row.children].map((cell) => cell.textContent.trim()));

  function save(name, text) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = `${name}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  async function copy(button, figure) {
    const text = tableRows(figure).map((row) => row.join("\t")).join("\n");
    const before = button.textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Not allowed by the browser";
    }
    setTimeout(() => (button.textContent = before), 1500);
  }

  function sort(header) {
    const table = header.closest("table");
    const column = [...header.parentNode.children].indexOf(header);
    const up = header.getAttribute("aria-sort") !== "ascending";
    for (const other of header.parentNode.children) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => {
      const cell = row.children[column];
      return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
    };
    const compare = (a, b) => {
      if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
      return typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
    };
    const rows = [...table.tBodies[0].rows].sort((a, b) => (up ? 1 : -1) * compare(key(a), key(b)));
    table.tBodies[0].append(...rows);
  }

  /* ---- the page ---- */

  function setTheme(next) {
    choice = next;
    document.documentElement.dataset.theme = isDark() ? "dark" : "light";
    const button = document.getElementById("theme");
    if (button) button.textContent = `Theme: ${choice}`;
    for (const swatch of document.querySelectorAll(".swatch")) swatch.style.background = shade(swatch.dataset.colour);
    redraw();
  }

  /* Sets up what was added to `root`. */
  function adopt(root) {
    for (const figure of root.querySelectorAll("figure.chart")) watcher.observe(figure);
    for (const table of root.querySelectorAll("table")) {
      const row = table.tBodies[0].rows[0];
      if (row) [...table.tHead.rows[0].children].forEach((head, n) => head.classList.toggle("number", row.children[n].classList.contains("number")));
    }
    for (const swatch of root.querySelectorAll(".swatch")) swatch.style.background = shade(swatch.dataset.colour);
  }

  function toggle(number, on) {
    if (on) hidden.delete(number); else hidden.add(number);
    settle(document);
    redraw();
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const figure = button.closest("figure");
    if (button.id === "theme") setTheme(themes[(themes.indexOf(choice) + 1) % themes.length]);
    else if (button.parentNode.tagName === "TH") sort(button.parentNode);
    else if (button.dataset.action === "copy") copy(button, figure);
    else if (button.dataset.action === "csv") {
      const chart = figure.matches(".chart") && chartOf(figure);
      save(fileName(figure.querySelector("h3").textContent), csv(chart ? rowsOf(chart) : tableRows(figure)));
    }
  });
  document.addEventListener("change", (event) => {
    if (event.target.dataset.toggle !== undefined) toggle(Number(event.target.dataset.toggle), event.target.checked);
  });
  systemDark.addEventListener("change", () => setTheme(choice));

  let width = innerWidth;
  let pending = 0;
  addEventListener("resize", () => {
    if (innerWidth === width || printing) return; // a phone's address bar comes and goes
    width = innerWidth;
    clearTimeout(pending);
    pending = setTimeout(redraw, 120);
  });

  function print(on) {
    printing = on;
    document.documentElement.dataset.theme = isDark() ? "dark" : "light";
    for (const folded of document.querySelectorAll("details")) folded.open = on;
    figures().filter((figure) => on || "drawn" in figure.dataset).forEach(draw);
  }
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));

  setTheme("system");
  adopt(document);
  /* Hides in `root` what belongs to runs that are switched off. */
  function settle(root) {
    for (const item of root.querySelectorAll("[data-run]")) item.hidden = hidden.has(Number(item.dataset.run));
  }

  return { adopt, hidden, settle };
})();
