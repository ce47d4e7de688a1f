// What are the measures of one layer, over the training? Nine charts that follow the slider.

/** The layer of that name in every run that has one. */
function everywhere() {
  return withLayers().map(({ run, number }) => ({ run, number, layer: run.layers.find((own) => own.name === state.layer) })).filter(({ layer }) => layer);
}

const epochsOf = (run) => run.curves[run.shown].first - 1 + run.curves[run.shown].test_loss.length;

/** [epoch, value] of each stage, and at the end of the training, before which rewiring may end. */
const overSteps = (run, layer, values) => [...values.map((value, place) => [layer.steps[place] / run.steps, value]), [epochsOf(run), values.at(-1)]];
const ofUpdates = (run, layer, values) => values.slice(1).map((value, place) => [layer.steps[place + 1] / run.steps, value]);

function perRun(make) {
  return everywhere().flatMap((own) => [make(own)].flat().map((line) => ({ name: label(own.number, own.run.shown), colour: hue(own.number, own.run.shown), ...line })));
}

function life() {
  const shares = { y: (value) => shareLabel(value), exact: (value) => percent(value) };
  const numbers = { y: (value) => count(value), counts: true };
  const longest = () => Math.max(...everywhere().map(({ run }) => epochsOf(run)));
  const inTime = { x: (value) => significant(value, 3), label: "epochs", cursor: atCursor, from: () => 0, until: longest, whole: true };
  const made = [
    chart({ title: "Connections", note: "dashed: budget", ...inTime, ...numbers, series: () => perRun(({ run, layer }) => [
      { points: overSteps(run, layer, layer.connections), step: true },
      { name: "", points: [[0, layer.budget], [epochsOf(run), layer.budget]], dash: "5 4", thin: true },
    ]) }),
    chart({ title: "Survival", note: "of the first connections", ...inTime, ...shares, low: 0, high: 1, series: () => perRun(({ run, layer }) => ({ points: overSteps(run, layer, layer.survival) })) }),
    chart({ title: "Age", ...inTime, ...numbers, low: 0, series: births, missing: "Nothing was rewired." }),
    chart({ title: "ITOP rate", note: "positions ever explored", ...inTime, ...shares, low: 0, series: () => perRun(({ run, layer }) => ({ points: overSteps(run, layer, layer.itop) })) }),
    chart({ title: "Mask distance", note: "positions an update changes", ...inTime, ...shares, low: 0, missing: "Nothing was rewired.", series: () => perRun(({ run, layer }) => ({ points: ofUpdates(run, layer, layer.hamming) })) }),
    chart({ title: "Fan-in", note: "at the slider", x: count, label: "connections of an output neuron", ...numbers, low: 0, series: () => histograms("fanIn") }),
    chart({ title: "Fan-out", note: "at the slider", x: count, label: "connections of an input neuron", ...numbers, low: 0, series: () => histograms("fanOut") }),
    chart({ title: "Dead neurons", note: "solid: outputs, dashed: inputs", ...inTime, ...numbers, low: 0, series: () => perRun(({ run, number, layer }) => [
      { name: `${label(number, run.shown)}: outputs without a connection`, points: overSteps(run, layer, layer.deadOutputs), step: true },
      { name: `${label(number, run.shown)}: inputs without a connection`, points: overSteps(run, layer, layer.deadInputs), step: true, dash: "5 4" },
    ]) }),
    chart({ title: "Gradient norm", note: "after each epoch", ...inTime, y: (value) => significant(value, 2), low: 0, series: gradients }),
  ];
  const title = element("span", {});
  const what = "The first connections are those the layer was initialised with. ITOP, in-time over-parameterization, is the share of all positions that have ever held a connection. An output without a connection is ablated: it gives its bias and nothing else. A connection that is dropped and grown again in one update counts as one that stayed.";
  const part = section("life", "", what, element("ul", { class: "legend" }), element("div", { class: "charts" }, made.map((one) => one.figure)));
  part.querySelector("h2").append("How the connections of layer ", title, " live");
  redraw.life = () => {
    title.textContent = `${shownLayer().name || "(model)"}`;
    const { ages } = shownLayer();
    made[2].note.textContent = `${alone() ? "" : `${shownRun().name}, `}bottom: the first; median ${count(ages?.median ?? 0)} steps`;
    part.querySelector("ul").replaceChildren(...(alone() ? [] : everywhere().map(({ run, number }) => element("li", {}, key(number, run.shown), label(number, run.shown)))));
    made.forEach((one) => one.draw());
  };
  redraw.cursors = () => made.forEach((one, place) => (place === 5 || place === 6 ? one.draw() : one.move()));
  return part;
}

/** Bands of the connections of the shown run, the oldest at the bottom. */
function births() {
  const [run, layer] = [shownRun(), shownLayer()];
  const { alive } = layer.births;
  if (alive.length < 2) return [];
  const [old, young] = [channels(colour("old")), channels(colour("young"))];
  let below = layer.steps.map(() => 0);
  return alive.map((counts, group) => {
    const above = counts.map((value, place) => below[place] + value);
    const share = group / (alive.length - 1);
    const mixed = old.map((value, channel) => Math.round(value + (young[channel] - value) * share));
    const band = layer.steps.map((step, place) => [step / run.steps, below[place], above[place]]);
    band.push([epochsOf(run), below.at(-1), above.at(-1)]);
    below = above;
    return { colour: `rgb(${mixed})`, band };
  });
}

/** Neurons by their connections, in bins of one width for all runs: widths are powers of two, and bins begin at their multiples. */
function histograms(side) {
  const width = Math.max(...everywhere().map(({ layer }) => layer[side].width));
  return perRun(({ run, layer }) => {
    const fine = layer[side];
    const least = Math.floor(fine.least / width) * width;
    const frame = fine.counts[Math.min(frameOf(run, layer), fine.counts.length - 1)];
    const own = Array(Math.ceil((fine.least + frame.length * fine.width - least) / width)).fill(0);
    frame.forEach((value, place) => (own[Math.floor((fine.least + place * fine.width - least) / width)] += value));
    // A bin reaches from its first number to the next bin's.
    const points = [[least, 0], ...own.map((value, place) => [least + place * width, value]), [least + own.length * width, own.at(-1)], [least + own.length * width, 0]];
    return { points: points.flatMap(([x, y], place) => (place > 0 ? [[x, points[place - 1][1]], [x, y]] : [[x, y]])), fill: true, thin: true };
  });
}

function gradients() {
  return perRun(({ run, layer }) => ({ points: (run.gradients[layer.name] ?? []).map((norm, place) => [run.curves[run.shown].first + place, norm]).filter(([, norm]) => norm !== null) }));
}
