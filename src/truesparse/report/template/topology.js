// How do topologies live? The layers, the player of their masks, and the measures of one layer.

const withLayers = () => content.runs.map((run, number) => ({ run, number })).filter(({ run }) => run.layers.length);
const shownRun = () => content.runs[state.run];
const shownLayer = () => shownRun().layers.find((layer) => layer.name === state.layer) ?? shownRun().layers[0];
const frames = () => shownLayer().drawing.frames;
const shownFrame = () => frames()[state.frame];
const epochsAt = (run, layer, frame) => layer.steps[frame.stage] / run.steps;
const atCursor = () => epochsAt(shownRun(), shownLayer(), shownFrame());

/** Of another run, the last frame that is not later than the slider. */
function frameOf(run, layer) {
  if (run === shownRun()) return state.frame;
  const at = atCursor() + 1e-9;
  const places = layer.drawing.frames.map((frame, place) => (epochsAt(run, layer, frame) <= at ? place : -1));
  return Math.max(0, ...places);
}

function layers() {
  const what = "Every layer with a topology. The mark on each bar is the layer's budget: the connections it was given at the start, or, where the method prunes, those it shall have at the end. Zeros read are the share of zeros in the inputs of the layer, of 64 samples of the test data. Choose a layer to see how it lives.";
  const body = element("tbody", {});
  const heads = ["layer", "kind", "positions", "budget", "connections", "sparsity", "density", "explored", "ablated", "dead inputs", "zeros read"];
  const table = element("table", {}, element("thead", {}, element("tr", {}, heads.map((head, place) => element("th", { scope: "col", class: place < 2 || place === 6 ? "left" : null }, head)))), body);
  redraw.layers = () => body.replaceChildren(...shownRun().layers.map(layerRow));
  return section("layers", "Layers and their budgets", what, runChoice(), element("div", { class: "scroll" }, table));
}

function runChoice() {
  const choices = withLayers();
  if (choices.length < 2) return null;
  const select = element("select", { "aria-label": "Run", onchange: () => pickRun(Number(select.value)) }, choices.map(({ run, number }) => element("option", { value: number }, `${run.name} (${NAMES[run.shown]})`)));
  select.classList.add("run-choice");
  return element("div", { class: "bar" }, element("label", {}, "Run", select));
}

function layerRow(layer) {
  const size = layer.rows * layer.columns;
  const now = layer.connections.at(-1);
  const density = now / size;
  const bar = drawn("svg", { class: "meter", viewBox: "0 0 100 10", preserveAspectRatio: "none", role: "img", "aria-label": `${shareLabel(density)} dense, budget ${shareLabel(layer.budget / size)}` },
    drawn("rect", { width: 100, height: 10, fill: "var(--grid)" }), drawn("rect", { width: 100 * density, height: 10, fill: hue(state.run, shownRun().shown) }),
    drawn("rect", { x: Math.min(100 * (layer.budget / size), 99.4) - 0.3, width: 0.9, height: 10, fill: "var(--ink)" }));
  const zeros = shownRun().zeroInputs[layer.name];
  const difference = now - layer.budget;
  const button = element("button", { type: "button", class: "plain", "aria-pressed": String(layer.name === shownLayer().name) }, layer.name || "(model)");
  const picked = layer.name === shownLayer().name;
  return element("tr", { class: picked ? "pick picked" : "pick", "data-layer": layer.name, onclick: () => pickLayer(layer.name) }, element("td", {}, button), element("td", { class: "left" }, layer.title), element("td", {}, count(size)),
    element("td", {}, count(layer.budget)), element("td", {}, count(now), difference ? element("small", {}, `${difference > 0 ? "+" : "−"}${count(Math.abs(difference))}`) : null),
    element("td", {}, percent(1 - density)), element("td", { class: "wide" }, bar), element("td", {}, shareLabel(layer.itop.at(-1))), element("td", {}, count(layer.deadOutputs.at(-1))), element("td", {}, count(layer.deadInputs.at(-1))), element("td", {}, zeros === undefined ? "–" : shareLabel(zeros)));
}

function player() {
  const [canvas, heat] = [element("canvas", { id: "mask", role: "img" }), element("div", { class: "heat" })];
  const slider = element("input", { id: "slider", type: "range", min: 0, step: 1, "aria-label": "Topology update" });
  const play = element("button", { type: "button", id: "play" }, "Play");
  const where = element("output", { id: "where", for: "slider" });
  const choice = element("select", { id: "layer", "aria-label": "Layer", onchange: () => pickLayer(choice.value) });
  const [counts, axes, sampled] = [element("ul", { class: "counts", id: "counts" }), element("p", { class: "axes" }), element("p", { class: "small", id: "sampled" })];
  slider.addEventListener("input", () => (stop(), show(Number(slider.value))));
  play.addEventListener("click", () => (state.timer ? stop() : start()));
  const mask = element("div", { class: "mask" }, axes, element("div", { class: "frame" }, canvas));
  const stage = element("div", { class: "player" }, mask, heat);
  redraw.player = () => {
    const layer = shownLayer();
    choice.replaceChildren(...shownRun().layers.map((own) => element("option", { value: own.name, selected: own.name === layer.name }, `${own.name}: ${own.title}`)));
    slider.max = frames().length - 1;
    const { rows, columns, rowStep, columnStep, every } = layer.drawing;
    const taps = layer.isConvolution ? ` (${layer.inputs} channels × kernel)` : "";
    axes.textContent = `Each row is one of ${count(layer.rows)} outputs, each column one of ${count(layer.columns)} inputs${taps}.`;
    const parts = [];
    if (rowStep > 1 || columnStep > 1) parts.push(`Too large to draw whole: shown is a sample of ${count(rows)} rows (one of every ${rowStep}) and ${count(columns)} columns (one of every ${columnStep}). Counts are of the whole layer.`);
    if (every > 1) parts.push(`Each step of the slider is the net change of ${every} updates.`);
    sampled.textContent = parts.join(" ");
    redraw.frame();
  };
  redraw.frame = () => {
    const [layer, frame] = [shownLayer(), shownFrame()];
    slider.value = state.frame;
    heatMap(heat, stage); // first: it takes room beside the mask, or below
    drawMask(canvas, layer.drawing, state.frame, mask.clientWidth);
    const present = layer.connections[frame.stage];
    const step = layer.steps[frame.stage];
    const at = `epoch ${epochsAt(shownRun(), layer, frame).toFixed(2)}`;
    const text = state.frame ? `${shownRun().steps > 1 ? `step ${count(step)}, ` : ""}${at}, ${state.frame} of ${frames().length - 1}` : `beginning, 0 of ${frames().length - 1}`;
    where.textContent = text;
    slider.setAttribute("aria-valuetext", text);
    const shown = state.frame ? [["dropped", "newly dropped", frame.dropped], ["grown", "newly grown", frame.grown]] : [["dropped", "newly dropped", 0], ["grown", "newly grown", 0]];
    const stayed = present - shown[1][2];
    const all = [...shown, ["active", "unchanged, active", stayed], ["absent", "unchanged, absent", layer.rows * layer.columns - stayed - shown[0][2] - shown[1][2]]];
    counts.replaceChildren(...all.map(([name, said, number]) => element("li", { "data-count": name, "data-number": number }, element("span", { class: "swatch", style: `background:var(--${name})` }), " ", element("b", {}, count(number)), ` ${said}`)));
    canvas.setAttribute("aria-label", `Mask of layer ${layer.name}, ${text}: ${all.map(([, said, number]) => `${count(number)} ${said}`).join(", ")}`);
  };
  const what = "How the mask of a layer changes from one update to the next. The slider moves all charts below with it; space plays, the arrow keys step.";
  return section("masks", "Mask evolution", what, element("div", { class: "bar" }, element("label", {}, "Layer", choice)), stage,
    element("div", { class: "transport" }, play, slider, where), counts, sampled);
}

/** How many connections each entry of the input keeps, at the frame of the slider. */
function heatMap(holder, stage) {
  const first = shownRun().layers.find((layer) => layer.drawing.frames[0].heat);
  stage.classList.toggle("alone", !first);
  if (!first) return holder.replaceChildren();
  const [depth, height, width] = imageShape(shownRun().sample, first.drawing.frames[0].heat.length);
  stage.classList.toggle("below", depth > 1);
  const highest = Math.max(1, ...first.drawing.frames.map((frame) => frame.heat.reduce((best, value) => Math.max(best, value), 0)));
  const values = first.drawing.frames[Math.min(state.frame, first.drawing.frames.length - 1)].heat;
  const images = Array.from({ length: Math.min(depth, 4) }, (_, channel) => {
    const canvas = element("canvas", { role: "img", "aria-label": `Connections of each input pixel${depth > 1 ? `, channel ${channel + 1}` : ""}` });
    drawHeat(canvas, values.slice(channel * height * width, (channel + 1) * height * width), height, width, highest, 300);
    return element("div", { class: "frame" }, canvas);
  });
  const unseen = values.filter((value) => value === 0).length;
  const more = depth > 4 ? ` The first 4 of ${depth} channels.` : "";
  holder.replaceChildren(element("p", { class: "axes" }, "Input heat map: connections of each pixel"), element("div", { class: "heats" }, images),
    element("p", { class: "scale" }, "0", element("span", { class: "ramp", style: `background:${heatRamp}` }), count(highest)),
    element("p", { class: "small", id: "unseen", "data-unseen": unseen }, `Layer ${first.name} sees ${count(values.length - unseen)} of ${plural(values.length, "pixel")}.${more}`));
}

function imageShape(sample, size) {
  if (sample.length === 3) return sample;
  return sample.length === 2 ? [1, ...sample] : [1, 1, size];
}
