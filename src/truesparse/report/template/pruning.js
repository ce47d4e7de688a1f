// What has pruning removed, and what does each layer bear? For runs whose network was pruned before it trained.

const layerColour = (place) => colour(`series-${place % 6}`);
const layerDash = (place) => ["", "7 4", "2 4", "9 3 2 3"][Math.floor(place / 6) % 4];

/** A section for each run that has something to say of it. */
function pruning() {
  return content.runs.filter((run) => run.pruning).map((run, place) => {
    const { rounds, sensitivity } = run.pruning;
    const names = Object.keys(rounds[0].layers);
    const lines = (points) => () => names.map((name, at) => ({ name: name || "(model)", colour: layerColour(at), dash: layerDash(at), points: points(name) }));
    const shares = { y: (value) => shareLabel(value), exact: (value) => percent(value) };
    const sparsity = { x: (value) => shareLabel(value), label: "sparsity" };
    const right = rounds.filter((round) => round.accuracy !== null);
    const made = [
      chart({ title: "Left of each layer", note: "after each round", ...shares, low: 0, high: 1, x: count, whole: true, label: "rounds",
        series: lines((name) => rounds.map((round, at) => [at, round.layers[name] / rounds[0].layers[name]])) }),
      chart({ title: "Accuracy", note: "after each round", ...shares, ...sparsity, missing: "This task has no classes.",
        series: () => [{ name: "the network", colour: colour("sparse"), points: right.map((round) => [round.sparsity, round.accuracy]) }] }),
      chart({ title: "Sensitivity", note: "each layer alone", ...shares, ...sparsity, label: "sparsity of that layer", missing: "This task has no classes.",
        series: lines((name) => sensitivity[name] ?? []) }),
    ];
    const legend = element("ul", { class: "legend" }, names.map((name, at) => element("li", {}, element("span", { class: "swatch", style: `background:${layerColour(at)}` }), name || "(model)")));
    const title = alone() ? "What pruning removed" : `What pruning removed: ${run.name}`;
    return section(`pruning-${place}`, title, pruningSaid(run.pruning), legend, element("div", { class: "charts" }, made.map((one) => one.figure)), removed(rounds, names));
  });
}

function pruningSaid({ criterion, across, source, accuracy, bytes: size, seconds }) {
  const parts = [criterion ? `By ${criterion}${across ? ` across the ${across}` : ""}` : null, source ? `from ${source}` : null];
  if (seconds !== undefined) parts.push(`in ${duration(seconds)}`);
  if (accuracy && accuracy.before !== null) parts.push(`accuracy ${percent(accuracy.before)} before, ${percent(accuracy.after)} after`);
  if (size) parts.push(`file ${bytes(size.before)} before, ${bytes(size.after)} after`);
  return `${parts.filter(Boolean).join(", ")}. Sensitivity: what the network before the last round is worth, on part of the test data, when one layer alone loses its smallest weights.`;
}

/** A row for each layer: what each round took, and what is left. */
function removed(rounds, names) {
  const later = rounds.slice(1);
  const total = (round) => names.reduce((sum, name) => sum + round.layers[name], 0);
  const row = (name, of) => element("tr", {}, element("td", {}, name), element("td", {}, count(of(rounds[0]))),
    later.map((round, at) => element("td", {}, `−${count(of(rounds[at]) - of(round))}`)), element("td", {}, count(of(rounds.at(-1))), element("small", {}, shareLabel(of(rounds.at(-1)) / of(rounds[0])))));
  const heads = ["layer", "connections", ...later.map((round, at) => (later.length > 1 ? `round ${at + 1}, to ${shareLabel(round.sparsity)}` : `to ${shareLabel(round.sparsity)}`)), "left"];
  const body = [...names.map((name) => row(name || "(model)", (round) => round.layers[name])), ...(names.length > 1 ? [row("all", total)] : [])];
  return element("div", { class: "scroll" }, element("table", {}, element("thead", {}, element("tr", {}, heads.map((head) => element("th", { scope: "col" }, head)))), element("tbody", {}, body)));
}
