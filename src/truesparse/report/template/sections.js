// What are the parts of the page? Each function makes one of them from the content.

const alone = () => content.runs.length === 1;
const hue = (number, variant) => colour(alone() ? variant : `series-${number % 6}`);

/** What a line is called. */
function label(number, variant) {
  const run = content.runs[number];
  if (alone()) return NAMES[variant];
  return Object.keys(run.curves).length > 1 ? `${run.name}, ${NAMES[variant]}` : run.name;
}

/** Every network of every run; masked ones last: their dashes show on the line of the truly sparse ones, which is often the same. */
const everyLine = () => content.runs.flatMap((run, number) => Object.keys(run.curves).map((variant) => ({ run, number, variant })));
const masksOnTop = (lines) => [...lines].sort((one, other) => (one.variant === "masked") - (other.variant === "masked"));

function section(id, title, what, ...children) {
  const heading = element("h2", { id: `${id}-title` }, title);
  return element("section", { id, "aria-labelledby": `${id}-title` }, heading, what ? element("p", { class: "what" }, what) : null, ...children);
}

/** A key that shows a line's colour and dashes. Made anew when colours change. */
function key(number, variant) {
  const style = { dense: "dotted", masked: "dashed", sparse: "solid" }[variant];
  return element("span", { class: "key", style: `border-top-style:${style};color:${hue(number, variant)}` });
}

function header() {
  const recipes = [...new Set(content.runs.map((run) => run.recipe))];
  const parts = [element("h1", {}, recipes.join(", "))];
  for (const run of content.runs) {
    const facts = [alone() ? null : run.name, run.config.algorithm, sparsityOf(run), plural(run.config.epochs, "epoch"), `seed ${run.config.seed ?? "?"}`, run.hardware];
    parts.push(element("p", { class: "facts" }, facts.filter(Boolean).join("  ·  ")));
  }
  parts.push(...content.runs.map(lede).filter(Boolean));
  for (const run of content.runs) for (const note of run.notes) parts.push(element("p", { class: "note" }, alone() ? "" : `${run.name}: `, `This run is ${note}.`));
  return element("div", { class: "head" }, ...parts);
}

function sparsityOf({ config }) {
  if (config.epsilon) return `${config.budget} with epsilon ${config.epsilon}`;
  return config.sparsity === undefined ? null : `${shareLabel(config.sparsity)} sparse, ${config.budget}`;
}

/** The run in a sentence, if it has both a dense and a truly sparse network. */
function lede(run) {
  const [dense, sparse] = ["dense", "sparse"].map((variant) => run.table.find((row) => row.variant === variant));
  if (!dense || !sparse) return null;
  const speed = dense.seconds / sparse.seconds;
  const right = sparse.accuracy === null ? [] : [", and is right on ", element("b", {}, percent(sparse.accuracy)), ` of the test data (dense: ${percent(dense.accuracy)})`];
  return element("p", { class: "lede" }, alone() ? "" : `${run.name}: `, "The truly sparse network keeps ", element("b", {}, `${count(sparse.weights)} of ${count(dense.weights)}`),
    " weights, trains ", element("b", {}, `${ratio(speed)} as fast`), " as the dense one in ", element("b", {}, shareLabel(sparse.bytes.total / dense.bytes.total)), " of its training memory", ...right, ".");
}

function summary() {
  const rows = [];
  content.runs.forEach((run, number) => {
    if (!alone()) rows.push(element("tr", { class: "run" }, element("td", { colspan: 9 }, run.name)));
    const dense = run.table.find((row) => row.variant === "dense");
    for (const row of run.table) rows.push(summaryRow(run, number, row, dense));
  });
  const samples = [...new Set(content.runs.map((run) => run.samples).filter(Boolean))].join(" or ");
  const heads = ["", "test accuracy", "test loss", "weights", "bytes in training", "operations", "energy, estimated", "seconds an epoch", samples ? `inference, ${samples} samples` : "inference"];
  const table = element("table", {}, element("thead", {}, element("tr", {}, heads.map((head) => element("th", { scope: "col" }, head)))), element("tbody", {}, rows));
  const what = "After the last epoch. Bytes are those of weights, gradients, optimizer state and topology together; operations and energy are those of a forward pass, one sample. Energy is an estimate by operations and bytes moved at the figures of Horowitz 2014 for 45 nm, no measurement. Seconds an epoch are the median, without evaluation. Times hold for this machine only: a ratio needs a dense network in the same run.";
  return section("summary", "Summary", what, element("div", { class: "scroll" }, table));
}

function summaryRow(run, number, row, dense) {
  const over = (text) => (dense && row !== dense ? element("small", {}, text) : null);
  return element("tr", { "data-variant": row.variant }, element("td", {}, key(number, row.variant), NAMES[row.variant]),
    element("td", {}, row.accuracy === null ? "–" : percent(row.accuracy)),
    element("td", {}, row.loss.toFixed(4)),
    element("td", {}, count(row.weights), over(dense && `${shareLabel(row.weights / dense.weights)} of dense`)),
    element("td", {}, bytes(row.bytes.total), over(dense && `${shareLabel(row.bytes.total / dense.bytes.total)} of dense`)),
    ...[["flops", operations], ["energy", picojoules]].map(([name, said]) =>
      element("td", {}, row[name] ? said(row[name]) : "–", over(dense?.[name] && row[name] && `${shareLabel(row[name] / dense[name])} of dense`))),
    element("td", {}, significant(row.seconds), over(dense && `${ratio(dense.seconds / row.seconds)} as fast`)),
    element("td", {}, row.inference ? duration(row.inference) : "–", over(dense?.inference && row.inference && `${ratio(dense.inference / row.inference)} as fast`)));
}

function learning() {
  const time = { epochs: "epochs", seconds: "seconds of training" };
  const buttons = Object.keys(time).map((unit) => element("button", { type: "button", "aria-pressed": String(state.unit === unit), onclick: () => choose(unit) }, unit));
  function choose(unit) {
    state.unit = unit;
    buttons.forEach((button, place) => button.setAttribute("aria-pressed", String(Object.keys(time)[place] === unit)));
    for (const one of overTime) one.options.label = time[unit];
    overTime.forEach((one) => one.draw());
  }
  const across = (run, variant, axis) => (axis === "epochs" ? run.curves[variant].test_loss.map((_, place) => run.curves[variant].first + place) : run.curves[variant][axis]);
  const lines = (axis, measure, extra = {}) => masksOnTop(everyLine()).flatMap(({ run, number, variant }) => {
    const [xs, ys] = [across(run, variant, axis()), run.curves[variant][measure]];
    return xs && ys ? [{ name: label(number, variant) + (extra.suffix ?? ""), colour: hue(number, variant), dash: DASHES[variant], thin: extra.thin, points: xs.map((x, place) => [x, ys[place]]) }] : [];
  });
  const made = (title, axis, x, measure, more) => chart({ title, x, from: more.from, whole: axis() === "epochs", label: more.label, y: more.y, exact: more.exact, missing: more.missing, note: more.note,
    series: () => [...lines(axis, measure), ...(more.also ? lines(axis, more.also, { suffix: ", training", thin: true }) : [])] });
  const loss = { y: (value) => significant(value, 3), exact: (value) => value.toFixed(4), also: "train_loss", note: "thick: test, thin: training" };
  const right = { y: (value) => `${significant(100 * value, 4)} %`, exact: (value) => percent(value), note: "on the test data", missing: "This task has no classes." };
  const unit = (value) => significant(value, 4);
  const overTime = [made("Loss over time", () => state.unit, unit, "test_loss", { ...loss, label: time[state.unit] }), made("Accuracy over time", () => state.unit, unit, "accuracy", { ...right, label: time[state.unit] })];
  const missing = "This run is from a version that did not count operations.";
  const overWork = [made("Loss over FLOPs", () => "flops", operations, "test_loss", { ...loss, label: "operations of the training", missing, from: () => 0 }), made("Accuracy over FLOPs", () => "flops", operations, "accuracy", { ...right, label: "operations of the training", missing, from: () => 0 })];
  const keys = everyLine().map(({ number, variant }) => element("li", {}, key(number, variant), label(number, variant)));
  const what = "After each epoch. FLOPs are the multiplications and additions that the method needs, as RigL counts them: those of a masked network are the sparse one's, though it computes more.";
  return section("learning", "Loss and accuracy", what,
    element("div", { class: "bar" }, element("ul", { class: "legend", style: "margin:0" }, keys), element("span", { class: "choice", role: "group", "aria-label": "Unit of time" }, buttons)),
    element("div", { class: "charts two" }, [...overTime, ...overWork].map((one) => one.figure)));
}

const PARTS = [["forward", "forward"], ["dx", "dx"], ["dW", "dW"], ["backward", "backward"], ["rewiring", "rewiring"], ["optimizer", "optimizer"], ["other", "other"]];

function stepTime() {
  const lines = everyLine().filter(({ run, variant }) => run.seconds[variant]);
  const what = "Mean seconds of a training step. Forward has the loss in it; dx are the gradients of activations, dW those of weights (the backward pass, split as measured on a copy of the network at the end); rewiring is spread over all steps; other is loading, logging and measuring.";
  if (!lines.length) return section("step", "Where the time of a step goes", null, element("p", { class: "small" }, "These runs are from a version that did not record it."));
  const total = ({ run, variant }) => Object.values(run.seconds[variant]).reduce((sum, part) => sum + part, 0);
  const longest = Math.max(...lines.map(total));
  const used = PARTS.filter(([part]) => lines.some(({ run, variant }) => part in run.seconds[variant]));
  const rows = lines.map((line) => {
    const parts = line.run.seconds[line.variant];
    const own = used.filter(([part]) => parts[part] > 0);
    const said = own.map(([part, name]) => `${name} ${duration(parts[part])}`).join("  ·  ");
    const stack = element("div", { class: "stack", role: "img", "aria-label": said, style: `width:${(100 * total(line)) / longest}%` },
      own.map(([part, name]) => element("span", { title: `${name} ${duration(parts[part])}`, style: `flex:${parts[part] / total(line)} 0 0;background:var(--${part.toLowerCase()})` })));
    return element("div", { class: "step" }, element("span", { class: "label" }, label(line.number, line.variant)), element("div", { class: "whole" }, stack),
      element("b", { class: "total" }, duration(total(line))), element("div", { class: "parts" }, said));
  });
  const legend = element("ul", { class: "legend" }, used.map(([part, name]) => element("li", {}, element("span", { class: "swatch", style: `background:var(--${part.toLowerCase()})` }), name)));
  return section("step", "Where the time of a step goes", what, legend, element("div", {}, rows));
}

const OPTIONS = { learning_rate: "learning rate", batch_size: "batch size", weight_decay: "weight decay", activation_l1: "penalty L1", activation_l2: "penalty L2", decay_grace: "decay grace", every: "steps between rewirings", until: "rewires until", ema: "average (EMA)" };

function settings() {
  const written = (value, name) => {
    if (value === null || value === undefined) return name === "every" || name === "pattern" ? "the method's own" : "none";
    if (Array.isArray(value)) return value.length ? value.join(", ") : "none";
    if (typeof value === "object") return Object.entries(value).map(([own, of]) => `${own} ${of}`).join(", ") || "none";
    return String(value);
  };
  const names = [...new Set(content.runs.flatMap((run) => Object.keys(run.config)))];
  const columns = content.runs.map((run) => ({ run, values: [...names.map((name) => written(run.config[name], name)), run.hardware] }));
  const heads = [...names.map((name) => OPTIONS[name] ?? name.replaceAll("_", " ")), "machine"];
  const what = alone() ? "Every choice of the run." : "Every choice of the runs; those that differ stand out.";
  if (alone()) {
    const pairs = heads.map((head, place) => element("div", {}, element("dt", {}, head), element("dd", {}, columns[0].values[place])));
    return section("settings", "Settings", what, element("dl", { class: "settings-columns" }, pairs));
  }
  const rows = heads.map((head, place) => {
    const values = columns.map(({ values: own }) => own[place]);
    return element("tr", { class: new Set(values).size > 1 ? "differs" : "" }, element("td", {}, head), values.map((value) => element("td", {}, value)));
  });
  const top = element("tr", {}, element("th", {}, ""), columns.map(({ run }) => element("th", { scope: "col" }, run.name)));
  return section("settings", "Settings", what, element("div", { class: "scroll" }, element("table", { class: "settings" }, element("thead", {}, top), element("tbody", {}, rows))));
}
