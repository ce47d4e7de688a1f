// How is a chart drawn? Lines, bands and steps, in SVG, as wide as there is room.

const MARGIN = { top: 10, right: 14, bottom: 34, left: 50 };
const charts = new Set();

/** Round numbers across [low, high], about so many. */
function ticks(low, high, wanted, whole = false) {
  const span = high - low || 1;
  const rough = Math.max(span / Math.max(wanted, 1), whole ? 1 : 0);
  const power = 10 ** Math.floor(Math.log10(rough));
  const steps = [1, 2, 2.5, 5, 10].map((factor) => factor * power).filter((size) => !whole || Number.isInteger(size));
  const step = steps.find((size) => span / size <= wanted) ?? 10 * power;
  const found = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-9; tick += step) found.push(Number(tick.toPrecision(12)));
  return found;
}

/**
 * A figure with a chart. `options`: title, note, label (x axis), height; x, y: how values are written; low, high: of the y axis, where fixed;
 * from(), until(): of the x axis, at least; whole, counts: the x and the y axis have whole numbers only;
 * series(): [{ name, colour, dash, points: [[x, y]], band: [[x, low, high]], step }]; cursor(): x of the slider, or null.
 */
function chart(options) {
  const note = element("span", {}, options.note ?? "");
  const holder = element("div", {});
  const figure = element("figure", {}, element("figcaption", {}, element("h3", {}, options.title), note), holder);
  const self = { figure, holder, note, options, draw: () => draw(self), move: () => moveCursor(self) };
  charts.add(self);
  return self;
}

function forget(container) {
  for (const one of charts) if (container.contains(one.figure)) charts.delete(one);
}

function extent(series, place) {
  const values = series.flatMap((line) => [
    ...(line.points ?? []).map((point) => point[place]),
    ...(line.band ?? []).flatMap((point) => (place ? point.slice(1) : [point[0]])),
  ]);
  return [Math.min(...values), Math.max(...values)];
}

function draw(self) {
  const { options, holder } = self;
  const series = options.series().filter((line) => (line.points ?? line.band).length);
  const width = Math.max(holder.clientWidth || 360, 200);
  const height = options.height ?? 208;
  if (!series.length) {
    holder.replaceChildren(element("p", { class: "small" }, options.missing ?? "This run has not recorded it."));
    return;
  }
  let [left, right] = extent(series, 0);
  left = Math.min(left, options.from?.() ?? left);
  right = Math.max(right, options.until?.() ?? right);
  if (left === right) [left, right] = [left - 0.5, right + 0.5];
  let [low, high] = extent(series, 1);
  low = options.low ?? low;
  high = options.high ?? high;
  if (low === high) [low, high] = low === 0 ? [0, 1] : [low - Math.abs(low) * 0.05, high + Math.abs(high) * 0.05];
  const marks = ticks(low, high, 5, options.counts);
  if (options.high === undefined && marks.length > 1) high = Math.max(high, marks.at(-1) + (marks.at(-1) < high ? marks[1] - marks[0] : 0));
  if (options.low === undefined && marks.length > 1 && marks[0] > low) low = marks[0] - (marks[1] - marks[0]);
  const rows = ticks(low, high, 5, options.counts);
  const written = rows.map((tick) => options.y(tick));
  const inset = Math.max(MARGIN.left - 16, 12 + 6.4 * Math.max(...written.map((text) => text.length)));
  const x = (value) => inset + ((value - left) / (right - left)) * (width - inset - MARGIN.right);
  const y = (value) => height - MARGIN.bottom - ((value - low) / (high - low)) * (height - MARGIN.bottom - MARGIN.top);
  const columns = ticks(left, right, Math.max(2, Math.floor((width - inset) / 62)), options.whole);
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": spoken(options, series) });
  rows.forEach((tick, place) => {
    svg.append(drawn("line", { class: "grid", x1: inset, x2: width - MARGIN.right, y1: y(tick), y2: y(tick) }));
    svg.append(drawn("text", { x: inset - 8, y: y(tick) + 4, "text-anchor": "end" }, written[place]));
  });
  svg.append(drawn("line", { class: "axis", x1: inset, x2: width - MARGIN.right, y1: y(low), y2: y(low) }));
  for (const tick of columns) {
    svg.append(drawn("line", { class: "axis", x1: x(tick), x2: x(tick), y1: y(low), y2: y(low) + 4 }));
    svg.append(drawn("text", { x: x(tick), y: y(low) + 17, "text-anchor": "middle" }, options.x(tick)));
  }
  svg.append(drawn("text", { x: width - MARGIN.right, y: height - 2, "text-anchor": "end" }, options.label));
  for (const line of series) svg.append(...shapes(line, x, y, low));
  const cursor = drawn("line", { class: "cursor", y1: MARGIN.top, y2: y(low), visibility: "hidden" });
  const hover = drawn("line", { class: "hover", y1: MARGIN.top, y2: y(low), visibility: "hidden" });
  svg.append(cursor, hover);
  Object.assign(self, { svg, cursor, hover, x, left, right, inset, width });
  svg.addEventListener("pointermove", (event) => point(self, series, event));
  svg.addEventListener("pointerleave", () => hide(self));
  holder.replaceChildren(svg);
  moveCursor(self);
}

function shapes(line, x, y, low) {
  if (line.band) {
    const upper = line.band.map(([at, , high]) => `${x(at).toFixed(1)},${y(high).toFixed(1)}`);
    const lower = line.band.map(([at, bottom]) => `${x(at).toFixed(1)},${y(bottom).toFixed(1)}`).reverse();
    return [drawn("polygon", { points: [...upper, ...lower].join(" "), fill: line.colour, "fill-opacity": line.opacity ?? 1 })];
  }
  const points = line.step ? stairs(line.points) : line.points;
  const path = points.map(([across, up], place) => `${place ? "L" : "M"}${x(across).toFixed(1)} ${y(up).toFixed(1)}`).join("");
  const found = [drawn("path", { class: `line${line.thin ? " thin" : ""}${line.dash?.startsWith("1 ") ? " dots" : ""}`, d: path, stroke: line.colour, "stroke-dasharray": line.dash ?? "" })];
  if (line.fill) {
    const closed = `${path}L${x(points.at(-1)[0]).toFixed(1)} ${y(low).toFixed(1)}L${x(points[0][0]).toFixed(1)} ${y(low).toFixed(1)}Z`;
    found.unshift(drawn("path", { d: closed, fill: line.colour, "fill-opacity": 0.16 }));
  }
  if (line.points.length === 1) found.push(drawn("circle", { cx: x(points[0][0]), cy: y(points[0][1]), r: 3.2, fill: line.colour }));
  return found;
}

function stairs(points) {
  return points.flatMap(([across, up], place) => (place ? [[across, points[place - 1][1]], [across, up]] : [[across, up]]));
}

function spoken(options, series) {
  const lines = series.filter((line) => line.points && line.name).map((line) => {
    const [first, last] = [line.points[0], line.points.at(-1)];
    return `${line.name}: ${options.y(first[1])} to ${options.y(last[1])}`;
  });
  return `${options.title}. ${lines.join("; ")}`;
}

function moveCursor(self) {
  const at = self.options.cursor?.() ?? null;
  if (!self.cursor) return;
  const shown = at !== null && at >= self.left - 1e-9 && at <= self.right + 1e-9;
  self.cursor.setAttribute("visibility", shown ? "visible" : "hidden");
  if (shown) for (const end of ["x1", "x2"]) self.cursor.setAttribute(end, self.x(at));
}

const tip = element("div", { class: "tip", hidden: true, "aria-hidden": "true" });

function point(self, series, event) {
  const box = self.svg.getBoundingClientRect();
  const across = ((event.clientX - box.left) / box.width) * self.width;
  const all = series.filter((line) => line.points && line.name).flatMap((line) => line.points.map(([at]) => at));
  if (!all.length) return;
  const wanted = self.left + ((across - self.inset) / (self.x(self.right) - self.inset)) * (self.right - self.left);
  const at = all.reduce((best, value) => (Math.abs(value - wanted) < Math.abs(best - wanted) ? value : best));
  for (const end of ["x1", "x2"]) self.hover.setAttribute(end, self.x(at));
  self.hover.setAttribute("visibility", "visible");
  const { options } = self;
  const lines = series.filter((line) => line.points && line.name).map((line) => {
    const near = line.points.reduce((best, value) => (Math.abs(value[0] - at) < Math.abs(best[0] - at) ? value : best));
    return element("div", {}, element("span", { class: "key", style: `color:${line.colour}` }), ` ${line.name} `, element("b", {}, (options.exact ?? options.y)(near[1])));
  });
  tip.replaceChildren(element("div", {}, `${options.x(at)} ${options.label}`), ...lines);
  tip.hidden = false;
  const place = Math.min(event.pageX + 16, window.scrollX + document.documentElement.clientWidth - tip.offsetWidth - 12);
  Object.assign(tip.style, { left: `${place}px`, top: `${event.pageY + 14}px` });
}

function hide(self) {
  self.hover.setAttribute("visibility", "hidden");
  tip.hidden = true;
}
