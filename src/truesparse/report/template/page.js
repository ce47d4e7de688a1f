// The page itself: reads the content, puts the sections together, and keeps them at one layer, one update and one look.

const FRAMES_A_SECOND = 6;
const state = { run: 0, layer: null, frame: 0, unit: "epochs", timer: null };
const redraw = {};
let content = null;

/** The layer that has most to show. */
const largest = (run) => run.layers.reduce((best, layer) => (layer.rows * layer.columns > best.rows * best.columns ? layer : best));

function pickRun(number) {
  stop();
  const at = atCursor();
  state.run = number;
  if (!shownRun().layers.some((layer) => layer.name === state.layer)) state.layer = largest(shownRun()).name;
  const places = frames().map((frame, place) => (epochsAt(shownRun(), shownLayer(), frame) <= at + 1e-9 ? place : 0));
  state.frame = Math.max(...places);
  showLayer();
}

function pickLayer(name) {
  state.layer = name;
  state.frame = Math.min(state.frame, frames().length - 1);
  showLayer();
}

function showLayer() {
  for (const name of ["layers", "player", "life"]) redraw[name]?.();
}

function show(frame) {
  state.frame = Math.max(0, Math.min(frame, frames().length - 1));
  redraw.frame();
  redraw.cursors();
}

function start() {
  if (state.frame === frames().length - 1) show(0);
  state.timer = setInterval(() => (state.frame < frames().length - 1 ? show(state.frame + 1) : stop()), 1000 / FRAMES_A_SECOND);
  document.getElementById("play").textContent = "Pause";
}

function stop() {
  clearInterval(state.timer);
  state.timer = null;
  const play = document.getElementById("play");
  if (play) play.textContent = "Play";
}

function build() {
  const main = document.getElementById("main");
  forget(main);
  const parts = [header(), ...pruning()];
  if (everyLine().length) parts.push(summary(), learning());
  if (withLayers().length) parts.push(layers(), player(), life());
  if (everyLine().length) parts.push(stepTime());
  parts.push(settings());
  main.replaceChildren(...parts);
  for (const one of charts) one.draw();
  if (withLayers().length) showLayer();
  const select = main.querySelector(".run-choice");
  if (select) select.value = state.run;
}

function look(name, on, value) {
  const root = document.documentElement;
  if (on) root.dataset[name] = value;
  else delete root.dataset[name];
  document.getElementById(name).setAttribute("aria-pressed", String(on));
  if (content) build();
}

function keys(event) {
  if (event.altKey || event.ctrlKey || event.metaKey || !withLayers().length) return;
  const own = event.target.closest("button, select, a") || (event.target.matches("input") && event.key.startsWith("Arrow"));
  if (own) return;
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (event.key === " ") state.timer ? stop() : start();
  else if (step) (stop(), show(state.frame + step));
  else return;
  event.preventDefault();
}

async function read() {
  const packed = Uint8Array.from(atob(document.getElementById("content").textContent.trim()), (letter) => letter.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(unpacked).text());
}

async function begin() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  look("theme", dark.matches, "dark");
  dark.addEventListener("change", () => look("theme", dark.matches, "dark"));
  document.getElementById("theme").addEventListener("click", () => look("theme", !document.documentElement.dataset.theme, "dark"));
  document.getElementById("palette").addEventListener("click", () => look("palette", !document.documentElement.dataset.palette, "safe"));
  document.body.append(tip);
  content = await read();
  const first = withLayers()[0];
  if (first) {
    state.run = first.number;
    const most = largest(first.run);
    state.layer = most.name;
    state.frame = most.drawing.frames.length > 1 ? 1 : 0;
  }
  build();
  document.addEventListener("keydown", keys);
  let waiting = null;
  const resized = () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      for (const one of charts) one.draw();
      redraw.frame?.();
    }, 120);
  };
  window.addEventListener("resize", resized);
  window.addEventListener("beforeprint", () => document.documentElement.dataset.theme && look("theme", false, ""));
  document.documentElement.dataset.ready = "yes";
}

begin().catch((error) => {
  document.getElementById("main").replaceChildren(element("p", { class: "problem" }, `This page cannot be shown: ${error.message}. It needs a browser of 2023 or later.`));
  throw error;
});
